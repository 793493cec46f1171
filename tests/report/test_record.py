"""A run's record: what of it counts after restarts; what a reader makes of one that is cut, damaged or another's."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jobs
from mosaic_photon.errors import ConfigError
from mosaic_photon.report.record import VERSION, read_run

LOSS = "loss_metrics/global_avg_loss"


def write(folder: Path, rows: list[dict[str, Any]], attempts: int = 1, **first: Any) -> Path:
    """A record as it lies on the disk; the attempts start 100 seconds apart."""
    entries: list[dict[str, Any]] = [
        {"attempt": n, "time": 100.0 * (n - 1), "begin": "Begins anew"} for n in range(1, attempts + 1)
    ]
    entries[0] |= first
    (folder / "run.json").write_text(json.dumps({"version": VERSION, "attempts": entries}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def report(attempt: int, step: int, at: float, **metrics: Any) -> dict[str, Any]:
    return {"attempt": attempt, "step": step, "time": at, "tokens": 8 * step, "metrics": metrics or {LOSS: float(step)}}


def event(attempt: int, step: int, at: float, name: str, seconds: float, **facts: Any) -> dict[str, Any]:
    return {"attempt": attempt, "step": step, "time": at, "event": name, "seconds": seconds, "facts": facts}


def test_what_a_later_attempt_has_done_again_no_longer_counts(tmp_path: Path) -> None:
    """The second and the third go on from 4: 5 and 6 are the third's, 7 is nobody's."""
    rows = [event(1, 0, 10.0, "start", 10.0)]
    rows += [report(1, step, 10.0 + step) for step in range(1, 8)]
    rows += [event(2, 4, 110.0, "start", 10.0), report(2, 5, 111.0)]
    rows += [event(3, 4, 210.0, "start", 10.0), report(3, 5, 211.0), report(3, 6, 212.0)]
    run = read_run(write(tmp_path, rows, attempts=3))
    series = run.series[LOSS]
    assert series.steps == [1, 2, 3, 4, 5, 6]
    assert series.attempts == [1, 1, 1, 1, 3, 3]
    assert series.tokens == [8, 16, 24, 32, 40, 48]
    assert run.undone == 4
    assert [row.step for row in run.restarts()] == [4, 4]


def test_the_ledger_accounts_for_all_the_time_of_attempts_and_for_none_between_them(tmp_path: Path) -> None:
    rows = [
        event(1, 0, 10.0, "start", 10.0),
        event(1, 1, 13.0, "compile", 2.0),
        event(1, 2, 15.0, "steps", 5.0, steps=2, data_wait=1.0),
        event(1, 2, 16.0, "validation", 1.0),
        event(1, 2, 18.0, "checkpoint", 2.0),
        event(1, 4, 21.0, "compile", 1.5),  # within the steps that are done again
        event(1, 4, 22.0, "steps", 4.0, steps=2, data_wait=0.5),
        event(2, 2, 105.0, "start", 5.0),
        event(2, 4, 109.0, "steps", 3.0, steps=2, data_wait=0.0),
    ]
    run = read_run(write(tmp_path, rows, attempts=2))
    assert run.seconds() == pytest.approx(22.0 + 9.0)
    assert run.ledger() == pytest.approx(
        {"start": 15.0, "compile": 3.5, "data_wait": 1.0, "validation": 1.0, "checkpoint": 2.0, "steps": 5.0,
         "undone": 2.5, "other": 1.0}
    )  # fmt: skip
    assert run.goodput() == pytest.approx(5.0 / 31.0)


def test_an_attempt_has_what_it_left_out_from_the_one_before(tmp_path: Path) -> None:
    folder = write(tmp_path, [], attempts=3, config={"training": {"steps": 4}}, command=["train"])
    content = json.loads((folder / "run.json").read_text())
    content["attempts"][1]["config"] = {"training": {"steps": 8}}
    (folder / "run.json").write_text(json.dumps(content))
    attempts = read_run(folder).attempts
    assert [attempt.config for attempt in attempts] == [{"training": {"steps": n}} for n in (4, 8, 8)]
    assert [attempt.command for attempt in attempts] == [["train"]] * 3


def test_numbers_that_json_lacks_come_back(tmp_path: Path) -> None:
    rows = [report(1, 1, 1.0, a="NaN", b="Infinity", c="-Infinity", d=3)]
    series = read_run(write(tmp_path, rows)).series
    assert math.isnan(series["a"].values[0])
    assert [series[name].values for name in "bcd"] == [[math.inf], [-math.inf], [3.0]]


def test_a_record_cut_in_the_middle_of_a_line_is_read_up_to_there(tmp_path: Path) -> None:
    folder = write(tmp_path, [report(1, step, float(step)) for step in (1, 2, 3)])
    whole = (folder / "metrics.jsonl").read_bytes()
    second = whole.index(b"\n", whole.index(b"\n") + 1)
    for end in range(second + 2, len(whole)):
        (folder / "metrics.jsonl").write_bytes(whole[:end])
        run = read_run(folder)
        assert run.series[LOSS].steps == [1, 2]
        assert len(run.notes) == 1
        assert "ends in the middle of a line" in run.notes[0]


def test_damaged_lines_within_are_left_out_and_told(tmp_path: Path) -> None:
    folder = write(tmp_path, [report(1, step, float(step)) for step in (1, 2, 3)])
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(lines[0] + b"\0\0\0\n" + lines[1][:20] + b"\n" + lines[2])
    run = read_run(folder)
    assert run.series[LOSS].steps == [1, 3]
    assert "2 lines cannot be read, and left out: 2, 3." in run.notes[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is not the folder of a run"),
        (b'{"version": 7, "attempts": {}}', "has version 7, and this release of mosaic-photon reads version 1"),
        (b'{"version": 1, "attempts": [{"attempt"', "is damaged"),
        (b'{"attempts": []}', "is damaged"),
        (b"[]", "is damaged"),
    ],
)
def test_what_is_no_record_is_one_message(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read_run(tmp_path)


def test_a_job_that_has_reported_nothing_yet_is_a_run(tmp_path: Path) -> None:
    folder = write(tmp_path, [])
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert run.series == {}
    assert run.goodput() is None
    assert len(run.notes) == 1


def test_the_reader_imports_nothing_that_takes_seconds() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import mosaic_photon.report.record"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert jobs.slow_imports(printed) == set()
