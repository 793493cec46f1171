"""A job from Python is the command's job, and leaves the process as it was."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import jobs
from mosaic_photon import ConfigError, train_job


def configs(folder: Path, data: Path, **tables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    job = tomllib.loads(jobs.JOB.format(out=folder / "out", tokenizer=jobs.TOKENIZER))
    for name, fields in tables.items():
        job[name] = job.get(name, {}) | fields
    return job, tomllib.loads(jobs.DATA.format(data=data))


def surroundings() -> dict[str, Any]:
    root, signals = logging.getLogger(), (signal.SIGINT, signal.SIGTERM, signal.SIGURG)
    return {
        "environment": dict(os.environ),
        "logging": (root.level, root.handlers[:]),
        "signals": [signal.getsignal(number) for number in signals],
        "collects": gc.isenabled(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        "group": dist.is_initialized(),
    }


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> dict[int, float]:
    """The command's, by step."""
    folder = tmp_path_factory.mktemp("command")
    assert jobs.run_here(jobs.write_job(folder, prepared_data)) == 0
    return jobs.scalars(folder)


def test_a_job_trains_as_by_the_command_again_and_again(
    tmp_path: Path, prepared_data: Path, losses: dict[int, float]
) -> None:
    before = surroundings()
    flags = ("--validation.enable", "--debug.deterministic", "--metrics.enable_tensorboard=false")
    for name, more in (("one", flags), ("two", ())):
        last = train_job(*configs(tmp_path / name, prepared_data), *more)
        assert (last["step"], last["loss"]) == (4, pytest.approx(losses[4], rel=1e-6))
        assert last["throughput(tps)"] > 0 and last["grad_norm"] > 0 and last[jobs.LOSS] == last["loss"]
        assert ("validation_metrics/loss" in last) == bool(more)
        assert surroundings() == before
    from mosaic_photon.titan.in_loop import InLoop

    assert not [one for one in gc.get_objects() if isinstance(one, InLoop)]  # nor is a trainer, with its weights, kept


def test_a_mistake_is_raised_and_the_next_call_is_none_the_worse(
    tmp_path: Path, prepared_data: Path, losses: dict[int, float], capfd: pytest.CaptureFixture[str]
) -> None:
    before, (job, data) = surroundings(), configs(tmp_path, prepared_data)
    wrong: dict[str, tuple[Any, Any, str]] = {
        "job config: unknown field 'training.stpes'. Did you mean 'steps'?": (
            job | {"training": {"stpes": 1}},
            data,
            "",
        ),
        "job config: unknown field 'training.3'.": (job | {"training": {3: 1}}, data, ""),
        "data config: unknown table 'None'.": (job, {None: 1}, ""),
        "training.steps": (job, data, "--training.steps=0"),
        "job config: expected the path of a file, or its tables as a dict, found None": (None, data, ""),
        "data config: no data to train on": (job, {}, ""),
        "nowhere": (job, {"mosaic_dataloader": {"name": "text", "dataset": {"local": "/nowhere"}}}, ""),
    }
    for message, (one, other, flag) in wrong.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            train_job(one, other, *([flag] if flag else []))
        assert surroundings() == before
    assert "error: " not in capfd.readouterr().err
    assert train_job(job, data)["loss"] == pytest.approx(losses[4], rel=1e-6)


def test_an_interrupted_job_is_saved_and_the_same_call_goes_on(
    tmp_path: Path, prepared_data: Path, losses: dict[int, float]
) -> None:
    before = surroundings()
    for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        callbacks = {"reads_callback:Interrupts": {"number": int(number)}}
        folder = tmp_path / error.__name__
        job, data = configs(folder, prepared_data, checkpoint={"enable": True, "interval": 100})
        with pytest.raises(error):
            train_job(job | {"callbacks": callbacks}, data)
        assert os.listdir(folder / "out" / "checkpoint") == ["step-2"]
        assert surroundings() == before
    assert train_job(job, data)["loss"] == pytest.approx(losses[4], rel=1e-6)
    assert train_job(job, data) == {}  # there is nothing left to do


def test_what_a_process_must_be_for_it(tmp_path: Path, prepared_data: Path) -> None:
    job, data = configs(tmp_path, prepared_data)
    raised: list[BaseException] = []

    def call() -> None:
        try:
            train_job(job, data)
        except ConfigError as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "in a process's main thread only" in str(raised[0])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with pytest.raises(ConfigError, match="a process group of its own: destroy the one that is there before"):
            train_job(job, data)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


SCRIPT = """
import os, sys
from mosaic_photon import train_job
for flags in (["--parallelism.data_parallel_shard_degree=2"], ["--parallelism.tensor_parallel_degree=2"]):
    last = train_job(sys.argv[1], sys.argv[2], *flags)
    print("rank", os.environ["RANK"], last["step"], last["loss"], flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_call_it_twice_in_two_layouts(tmp_path: Path, prepared_data: Path, losses: dict[int, float]) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    _, job, _, data = jobs.write_job(tmp_path, prepared_data)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.run([*command, tmp_path / "train.py", job, data], capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.findall(r"^rank (\d) (\d+) (\S+)$", run.stdout, re.MULTILINE)
    assert sorted(rank for rank, _, _ in found) == ["0", "0", "1", "1"]
    assert [float(loss) for _, _, loss in found] == pytest.approx([losses[4]] * 4, rel=1e-4)
