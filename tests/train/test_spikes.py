"""Jobs that leave out batches: as they are told to, or as spike_guard finds them; held to data that never had them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import MDSWriter

import jobs
from mds_data import sample_tokens
from mosaic_photon.report.record import SKIP, read_run

STEPS, BATCH = 10, 4
BAD = range(6, 9)
"""Batches whose gradients are ruined, counted from 1. Data are in order: batch b holds samples 4 (b - 1) to 4 b - 1."""
DATA = jobs.DATA.partition("[mosaic_eval_dataloader]")[0].replace("shuffle = true", "shuffle = false")
DATA = DATA.replace("num_canonical_nodes = 4", "num_canonical_nodes = 1")
SAVES = ("--checkpoint.enable=true", "--checkpoint.interval=2", f"--training.steps={STEPS}")
GUARD = """
[callbacks."mosaic_photon.callbacks:SpikeGuard"]
window = 4
max_skips = {max_skips}
[callbacks."poison:Marked"]
samples = [{samples}]
"""


def guarded(bad: range | list[int], max_skips: int = 2, job: str = jobs.JOB) -> str:
    """A job with a guard, on data of which these batches are bad."""
    samples = ", ".join(str(BATCH * (batch - 1) + 1) for batch in bad)
    return job + GUARD.format(max_skips=max_skips, samples=samples)


def write(folder: Path, without: range | list[int] = ()) -> Path:
    """Samples in order, without those of some batches."""
    with MDSWriter(out=str(folder / "train"), columns={"tokens": "ndarray:int32:65"}) as writer:
        for number in range(80):
            if number // BATCH + 1 not in without:
                writer.write({"tokens": sample_tokens(number, 65).astype(np.int32)})
    return folder


def state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return {name: value for name, value in jobs.whole_state(folder, step).items() if torch.is_tensor(value)}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(("layers", "optimizer")))


def paste(command: str) -> None:
    """Run a command of a message in a shell of its own, to its end."""
    shell = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=jobs.ROOT, env=shell)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data never had the bad batches."""
    folder = tmp_path_factory.mktemp("clean")
    arguments = jobs.write_job(folder, write(folder / "data", without=BAD), jobs.JOB, DATA)
    assert jobs.run_here(arguments, *SAVES, "--checkpoint.keep_latest_k=0") == 0
    return folder


def test_a_job_that_passes_over_batches_is_one_whose_data_never_had_them(
    data: Path, clean: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Steps, schedule and counts go on; it is told to when it has made some steps, and stops once more after them."""
    arguments = jobs.write_job(tmp_path, data, jobs.JOB, DATA)
    skip = f"--mosaic.skip_batches={BAD[0]}-{BAD[-1]}"
    for steps, more in ((4, ()), (7, (skip,)), (STEPS, (skip,))):
        assert jobs.run_here(arguments, *SAVES, f"--training.steps={steps}", *more) == 0
    assert "batches 6-8 of the data's plan, 3 in all" in capfd.readouterr().err
    assert_same(state(tmp_path, STEPS), state(clean, STEPS))
    for tag in (jobs.LOSS, "lr", "n_tokens_seen", "n_loss_tokens_seen"):
        assert jobs.scalars(tmp_path, tag) == jobs.scalars(clean, tag)
    assert jobs.run_here(arguments, *SAVES, f"--training.steps={STEPS + 2}", "--mosaic.skip_batches=7-9") == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert "batches 9 of the plan have been trained on before the checkpoint, whose next one is 14" in said
    assert "load_step, at most 5" in said


def test_a_step_that_is_held_back_leaves_weights_and_optimizer(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """At a constant rate its run is one without that batch, a step longer."""
    constant = jobs.JOB.replace("warmup_steps = 2", "warmup_steps = 0\ndecay_ratio = 0.0")
    runs = {"held back": (data, guarded([BAD[0]], job=constant), STEPS)}
    runs["clean"] = (write(tmp_path / "data", without=[BAD[0]]), constant, STEPS - 1)
    for name, (source, job, steps) in runs.items():
        arguments = jobs.write_job(tmp_path / name, source, job, DATA)
        assert jobs.run_here(arguments, *SAVES, f"--training.steps={steps}") == 0
    assert_same(state(tmp_path / "held back", STEPS), state(tmp_path / "clean", STEPS - 1))
    said = [line for line in capfd.readouterr().out.splitlines() if "makes no optimizer step" in line]
    assert len(said) == 1
    assert re.search(r"Step 6 .* \(stream .* samples 20, 21, 22, 23\): its gradient norm lies \d+", said[0])
    assert jobs.scalars(tmp_path / "held back", "spike_guard/held_back") == {
        s: s >= BAD[0] for s in range(1, STEPS + 1)
    }
    assert list(jobs.scalars(tmp_path / "held back", "spike_guard/grad_norm")) == [BAD[0]]
    assert BAD[0] not in jobs.scalars(tmp_path / "held back")
    (row,) = [row for row in read_run(tmp_path / "held back" / "out").events if row.event == SKIP]
    assert row.step == BAD[0]
    assert row.facts is not None
    assert "its gradient norm lies" in row.facts["why"]


def test_the_command_that_a_job_ends_with_goes_on_without_the_bad_batches(
    data: Path, clean: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    arguments = jobs.write_job(tmp_path, data, guarded(BAD), DATA)
    assert jobs.run_here(arguments, *SAVES, "--checkpoint.keep_latest_k=0") == 1
    said, command = capfd.readouterr().err.splitlines()[-2:]
    assert "Step 8 has loss" in said and "3 steps of late that made no optimizer step (6, 7, 8)" in said
    assert command.endswith(" --checkpoint.load_step=4 --mosaic.skip_batches=6-8")
    words = shlex.split(command)
    assert words[:3] == [sys.executable, "-m", "mosaic_photon.train_with_mosaic"]
    end = words.index("--")
    assert jobs.run_here(words[3:end], *words[end + 1 :]) == 0
    assert "makes no optimizer step" not in capfd.readouterr().out
    assert_same(state(tmp_path, STEPS), state(clean, STEPS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("--parallelism.data_parallel_shard_degree=2",),
        ("--parallelism.tensor_parallel_degree=2", "--training.local_batch_size=4"),
        ("--parallelism.pipeline_parallel_degree=2", "--training.local_batch_size=4"),
        ("--parallelism.data_parallel_shard_degree=2", "--training.local_batch_size=1", "--compile.enable"),
    ],
    ids=["FSDP2", "TP", "PP", "accumulated, compiled"],
)
def test_all_ranks_hold_back_the_same_and_the_command_is_torchrun_s(
    layout: tuple[str, ...], data: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that is printed goes on at this layout; and from its last checkpoint the job does on one rank."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    arguments = jobs.write_job(tmp_path, data, guarded(BAD), DATA)
    printed = jobs.launch(arguments, *SAVES, *layout, ranks=2, expect=1)
    assert printed.count("Step 8 has loss") == 1
    command = next(line for line in printed.splitlines() if line.endswith("--mosaic.skip_batches=6-8"))
    assert "torch.distributed.run" in command
    paste(command)
    theirs = jobs.scalars(clean)
    assert jobs.scalars(tmp_path) == pytest.approx(theirs, rel=1e-4)
