"""A job keeps its record: all that TensorBoard gets, each start an attempt, readable after a kill at any moment."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jobs
from kept_records import begin, train
from mosaic_photon.report import recorder
from mosaic_photon.report.record import read_run


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    recorder.end("ended")


def test_each_start_is_an_attempt_and_tells_what_differs(tmp_path: Path) -> None:
    train(tmp_path, 1, 4, lr=1.0)
    train(tmp_path, 3, 6, lr=1.0, goes_on=True)
    train(tmp_path, 5, 6, lr=0.5, goes_on=True)
    entries = json.loads((tmp_path / "run.json").read_text())["attempts"]
    assert [entry["attempt"] for entry in entries] == [1, 2, 3]
    assert ["config" in entry for entry in entries] == [True, False, True]
    run = read_run(tmp_path)
    assert run.series["loss"].steps == [1, 2, 3, 4, 5, 6]
    assert run.series["loss"].attempts == [1, 1, 2, 2, 3, 3]
    assert [(attempt.config or {})["lr"] for attempt in run.attempts] == [1.0, 1.0, 0.5]


def test_the_same_job_begun_anew_is_the_same_run(tmp_path: Path) -> None:
    train(tmp_path, 1, 4)
    train(tmp_path, 1, 2)
    assert read_run(tmp_path).series["loss"].attempts == [2, 2]


def test_another_job_in_the_same_folder_has_a_record_of_its_own(tmp_path: Path) -> None:
    for lr in (1.0, 2.0, 3.0):
        train(tmp_path, 1, 2, lr=lr)
    folders = (tmp_path / "earlier_runs/1", tmp_path / "earlier_runs/2", tmp_path)
    for folder, lr in zip(folders, (1.0, 2.0, 3.0), strict=True):
        run = read_run(folder)
        assert [attempt.config["lr"] for attempt in run.attempts if attempt.config] == [lr]
        assert run.series["loss"].attempts == [1, 1]


def test_a_job_of_another_checkpoint_folder_does_not_go_on_with_the_record(tmp_path: Path) -> None:
    train(tmp_path, 1, 2)
    train(tmp_path, 7, 8, goes_on=True, checkpoint={"folder": "other"})
    assert read_run(tmp_path).series["loss"].steps == [7, 8]
    assert read_run(tmp_path / "earlier_runs/1").series["loss"].steps == [1, 2]


@pytest.mark.parametrize("content", [b'{"version": 99}', b'{"version": 1, "att', None])
def test_a_record_that_cannot_be_gone_on_with_is_set_aside(tmp_path: Path, content: bytes | None) -> None:
    train(tmp_path, 1, 2)
    (tmp_path / "run.json").unlink()
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    train(tmp_path, 3, 4, goes_on=True)
    assert read_run(tmp_path).series["loss"].steps == [3, 4]
    (tmp_path / "run.json").unlink()
    train(tmp_path, 5, 6, goes_on=True)
    kept = [(tmp_path / f"earlier_runs/{number}/metrics.jsonl").read_bytes() for number in (1, 2)]
    assert [b'"step":3' in rows for rows in kept] == [False, True]
    assert len(kept[0].splitlines()) == 3


def test_a_line_that_a_crash_has_cut_does_not_spoil_the_next(tmp_path: Path) -> None:
    train(tmp_path, 1, 4)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    train(tmp_path, 5, 6, goes_on=True)
    run = read_run(tmp_path)
    assert run.series["loss"].steps == [1, 2, 3, 5, 6]
    assert "1 line cannot be read" in run.notes[0]


def test_a_full_disk_is_told_once_and_ends_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    progress, record = begin(tmp_path), recorder.current()
    assert record is not None
    write, room = os.write, iter([1000, 5, 0, 1000])  # the kernel writes what there is room for, then nothing

    def writes(fd: int, line: bytes) -> int:
        if fits := next(room):
            return write(fd, line[:fits])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "write", writes)
        for progress.step in (1, 2, 3, 4):
            record.report({"loss": 0.5}, progress.step)
    assert read_run(tmp_path).series["loss"].steps == [1, 4]
    assert [line.message for line in caplog.records] == [
        "The record in metrics.jsonl has gaps from step 2 on: a line was cut."
    ]


KILLED = """
import sys
from pathlib import Path
import kept_records
for number in range(10**9):
    kept_records.train(Path(sys.argv[1]), 1 + 2 * number, 4 + 2 * number, goes_on=True, lr=number)
    print(number, flush=True)
"""


def test_killed_at_any_moment_both_files_are_readable(tmp_path: Path) -> None:
    chance = random.Random(3)
    attempts = 0
    for _ in range(5):
        command = [sys.executable, "-c", KILLED, str(tmp_path)]
        paths = os.pathsep.join([str(jobs.ROOT / "tests"), *sys.path])
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 20)):
                assert process.stdout.readline()
            time.sleep(chance.random() / 500)
            process.kill()
        run = read_run(tmp_path)
        assert run.notes == []
        assert [attempt.attempt for attempt in run.attempts] == list(range(1, len(run.attempts) + 1))
        assert len(run.attempts) > attempts
        attempts = len(run.attempts)


def test_an_event_where_no_record_is_kept_is_nothing() -> None:
    recorder.event("skip", why="spike")
    with recorder.spent("checkpoint"):
        pass


def tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    (events,) = folder.rglob("events.*")
    accumulator = EventAccumulator(str(events)).Reload()
    return {
        tag: {scalar.step: scalar.value for scalar in accumulator.Scalars(tag)} for tag in accumulator.Tags()["scalars"]
    }


def test_a_job_records_what_tensorboard_gets_and_where_its_time_went(tmp_path: Path, prepared_data: Path) -> None:
    flags = ["--validation.enable", "--checkpoint.enable", "--checkpoint.interval=2", "--metrics.log_freq=2"]
    job = jobs.JOB + '[callbacks."reads_callback:LogsTokens"]\n'
    arguments = jobs.write_job(tmp_path, prepared_data, job)
    assert jobs.run_here(arguments, *flags, "--training.steps=5") == 0
    run, written = read_run(tmp_path / "out"), tensorboard(tmp_path / "out")
    assert run.notes == []
    assert run.series.keys() == written.keys()
    for name, values in written.items():
        one = run.series[name]
        assert dict(zip(one.steps, one.values, strict=True)) == pytest.approx(values, rel=1e-6), name
    (attempt,) = run.attempts
    assert attempt.config and attempt.config["training"]["steps"] == 5
    assert attempt.config["mosaic"]["dataloader"]["dataset"]["split"] == "train"
    assert attempt.data and attempt.data["tokens_per_step"] == 256
    assert attempt.layout and attempt.layout["ranks"] == 1
    assert {"python", "torch", "torchtitan", "mosaicml-streaming"} <= (attempt.versions or {}).keys()
    told = [(row.event, row.step, (row.facts or {}).get("steps")) for row in run.events]
    assert told == [
        ("start", 0, None), ("steps", 1, 1), ("validation", 1, None), ("steps", 2, 1), ("checkpoint", 2, None),
        ("validation", 2, None), ("steps", 4, 2), ("checkpoint", 4, None), ("validation", 4, None),
        ("checkpoint", 5, None), ("steps", 5, 1), ("stop", 5, None),
    ]  # fmt: skip
    spent = run.ledger()
    assert sum(spent.values()) == pytest.approx(run.seconds())
    assert min(spent[name] for name in ("start", "validation", "checkpoint", "steps")) > 0

    arguments = jobs.write_job(
        tmp_path / "alone", prepared_data, jobs.JOB + '[callbacks."reads_callback:LogsTokens"]\n'
    )
    alone = ("--metrics.enable_tensorboard=false", "--training.steps=5")
    assert jobs.run_here(arguments, *flags, *alone) == 0
    assert read_run(tmp_path / "alone/out").series.keys() == run.series.keys()
