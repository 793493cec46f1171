"""State, groups and steps move between one rank and two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "reshard_worker.py"


def worker(ranks: int, form: str, out: Path, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", str(WORKER)]
    command += [form, str(out), *([str(checkpoint)] if checkpoint else [])]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(out / "weights.pt", weights_only=True)


@pytest.mark.parametrize("form", ["foreach", pytest.param("for-loop", marks=pytest.mark.slow)])
def test_one_rank_to_two_and_back_is_one_run(form, tmp_path):
    worker(1, form, tmp_path / "first")
    alone = worker(1, form, tmp_path / "alone", tmp_path / "first" / "checkpoint")
    split = worker(2, form, tmp_path / "split", tmp_path / "first" / "checkpoint")
    torch.testing.assert_close(split, alone)
    alone = worker(1, form, tmp_path / "alone2", tmp_path / "alone" / "checkpoint")
    back = worker(1, form, tmp_path / "back", tmp_path / "split" / "checkpoint")
    torch.testing.assert_close(back, alone)
    groups = [json.loads((tmp_path / run / "groups.json").read_text()) for run in ("first", "split", "back")]
    assert groups[0] == groups[1] == groups[2]
    assert [group["weight_decay"] for group in groups[0]] == [0.01, 0.0]
