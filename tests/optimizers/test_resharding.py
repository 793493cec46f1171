"""State, groups and steps move between one rank and two; a step is the same however parameters are cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).parent


def launch(ranks: int, worker: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += [str(FOLDER / worker), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def train(ranks: int, steps: int, out: Path, checkpoint: Path | None = None) -> None:
    launch(ranks, "reshard_worker.py", str(steps), str(out), *([str(checkpoint)] if checkpoint else []))


def test_a_step_on_dtensors_is_that_on_whole_tensors_in_every_layout():
    launch(2, "layouts_worker.py")


def test_one_rank_to_two_and_back_is_one_run(tmp_path):
    one, two, back = tmp_path / "one", tmp_path / "two", tmp_path / "back"
    train(1, 9, one)
    train(2, 6, two, one / "3" / "checkpoint")
    train(1, 9, back, two / "6" / "checkpoint")
    for run, step in ((two, "6"), (back, "9")):
        weights, expected = (torch.load(r / step / "weights.pt", weights_only=True) for r in (run, one))
        torch.testing.assert_close(weights, expected)
        groups, expected = (json.loads((r / step / "groups.json").read_text()) for r in (run, one))
        assert groups == expected
        assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
