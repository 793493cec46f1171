"""What one rank sees and the others do not ends alike on all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("agree_job.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[str], str]]:
    """What each rank decides."""
    store = tmp_path_factory.mktemp("store") / "file"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        [sys.executable, SCRIPT, store], capture_output=True, text=True, env=environment, timeout=250
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_a_spike_on_one_rank_holds_the_step_back_on_all(found: list[tuple[list[str], str]]) -> None:
    assert len(found) == 3
    steps = found[0][0]
    assert all(theirs == steps for theirs, _ in found)
    assert steps[:-1] == ["made"] * 5 + ["held back", "made"]
    assert "2 steps of late that made no optimizer step (6, 8)" in steps[-1]


def test_ranks_that_would_pass_over_other_batches_all_refuse(found: list[tuple[list[str], str]]) -> None:
    message = found[0][1]
    assert all(theirs == message for _, theirs in found)
    assert "mosaic.skip_batches: 6-9 -> 6-8" in message and "ranks would read different data" in message
