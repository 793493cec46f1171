"""The record of a run: `run.json`, what it was, and `metrics.jsonl`, what happened, a row a line; format and reader.

A run is what one folder's starts have trained: each start of its job is an attempt, counted from 1. One that goes on
from step s undoes what earlier ones did after s; their rows stay in the file and no longer count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import display

VERSION = 1
RUN, METRICS = "run.json", "metrics.jsonl"
EARLIER = "earlier_runs"
"""Folder in DUMP for records of other jobs that wrote to it before, each in a folder of its own."""

START, STOP, STEPS, COMPILE, VALIDATION, CHECKPOINT, SKIP = (
    "start", "stop", "steps", "compile", "validation", "checkpoint", "skip",
)  # fmt: skip
"""Events. `seconds` of a `start` is the time from the process's start to its first step, of a `stop` to its end.
`steps` comes with each report: its facts are `steps`, how many since the last one, and `data_wait`, for how many of the
seconds they waited for data. What was compiled within the steps of a report is in their seconds, too."""


class Attempt(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One start of the run's job. In the file what is as it was in the attempt before is left out."""

    attempt: int = 0
    """Counted from 1."""
    time: float
    """When its process started, in Unix seconds."""
    begin: str
    """What it began from, in words."""
    config: dict[str, Any] | None = None
    """The job's tables as they were resolved, both files and flags; numbers that JSON lacks as strings."""
    versions: dict[str, str] | None = None
    machine: dict[str, Any] | None = None
    layout: dict[str, Any] | None = None
    command: list[str] | None = None
    data: dict[str, Any] | None = None
    """Streams and their samples, steps of an epoch, samples and tokens of a step, and what fixes the order."""
    table: list[tuple[str, str]] | None = None
    """What the job showed before its first step: name and value."""


OPTIONAL = ("config", "versions", "machine", "layout", "command", "data", "table")
"""What an attempt leaves out where it is as before."""


class _Head(msgspec.Struct):
    version: int


class _Attempts(msgspec.Struct):
    attempts: list[Attempt]


class Row(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """A line of `metrics.jsonl`: a report, which has `metrics`, or an event."""

    attempt: int
    step: int
    time: float
    tokens: int | None = None
    """Trained on up to here, by all ranks."""
    metrics: dict[str, float | str] | None = None
    """By the names that TensorBoard and W&B have them; "NaN", "Infinity", "-Infinity" are strings."""
    event: str | None = None
    seconds: float | None = None
    facts: dict[str, Any] | None = None
    """What else is known of the event."""


def plain(value: Any) -> Any:
    """The value as JSON has it: what it lacks, infinities and NaN too, as strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else _word(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


@dataclass(frozen=True)
class Series:
    """One metric over a run: columns of equal length, by step."""

    rows: list[Row] = field(default_factory=list)
    """The reports that have it."""
    values: list[float] = field(default_factory=list)
    """NaN and infinities among them."""

    @cached_property
    def steps(self) -> list[int]:
        return [row.step for row in self.rows]

    @cached_property
    def tokens(self) -> list[int | None]:
        return [row.tokens for row in self.rows]

    @cached_property
    def attempts(self) -> list[int]:
        return [row.attempt for row in self.rows]


@dataclass(frozen=True)
class Run:
    """A record that has been read."""

    folder: Path
    attempts: list[Attempt]
    """In order, each with all its fields."""
    rows: list[Row]
    """Reports that count."""
    events: list[Row]
    """Of all attempts, what has been undone included."""
    undone: int
    """Reports that later attempts have taken the place of."""
    notes: list[str]
    """A sentence for each thing that could not be read."""

    @cached_property
    def series(self) -> dict[str, Series]:
        """Each metric by its name, in the order in which they appear."""
        found: dict[str, Series] = {}
        for row in self.rows:
            for name, value in (row.metrics or {}).items():
                one = found.get(name) or found.setdefault(name, Series())
                one.rows.append(row)
                one.values.append(float(value))
        return found

    @cached_property
    def first_undone(self) -> dict[int, float]:
        """Attempt -> the first of its steps that a later attempt has done again; infinity where none has."""
        return _first_undone(self.events)

    def counts(self, row: Row) -> bool:
        """Whether no later attempt has done again what the row tells of."""
        return row.step < self.first_undone.get(row.attempt, math.inf)

    def restarts(self) -> list[Row]:
        """The `start` of each attempt but the first."""
        return [row for row in self.events if row.event == START][1:]

    def ledger(self) -> dict[str, float]:
        """Seconds of all attempts together, by what they went into.

        "start", "compile", "data_wait", "validation", "checkpoint", "steps" (what is left of steps' time), "undone"
        (steps that were done again), and "other".
        """
        spent = dict.fromkeys(("start", "compile", "data_wait", "validation", "checkpoint", "steps", "undone"), 0.0)
        for row in self.events:
            seconds, facts = row.seconds or 0.0, row.facts or {}
            part = "steps" if self.counts(row) else "undone"
            if row.event == STEPS:
                waited = facts.get("data_wait", 0.0) if part == "steps" else 0.0
                spent["data_wait"] += waited
                spent[part] += seconds - waited
            elif row.event in spent:
                spent[row.event] += seconds
            if row.event == COMPILE:  # is told within the steps that wait for it
                spent[part] -= seconds
        for part in ("steps", "undone"):
            spent[part] = max(0.0, spent[part])
        spent["other"] = max(0.0, self.seconds() - sum(spent.values()))
        return spent

    def seconds(self) -> float:
        """How long the attempts ran, each from its process's start to the last row that it wrote."""
        last: dict[int, float] = {}
        for row in (*self.rows, *self.events):
            last[row.attempt] = max(row.time, last.get(row.attempt, row.time))
        return sum(max(0.0, last.get(attempt.attempt, attempt.time) - attempt.time) for attempt in self.attempts)

    def goodput(self) -> float | None:
        """Share of the attempts' time that went into steps that count; None before the first report."""
        whole, steps = self.seconds(), self.ledger()["steps"]
        return steps / whole if whole and steps else None


def read_run(folder: str | Path) -> Run:
    """The record in a folder, of a job that runs, has ended or was killed.

    Lines that cannot be read, as one that was being written when the machine went down, are told in `notes`.

    Raises:
        ConfigError: there is none, it is damaged, or of another version.
    """
    folder = Path(folder)
    attempts = filled(read_attempts(folder))
    rows, notes = _read_rows(folder / METRICS)
    events = [row for row in rows if row.event is not None]
    reports = [row for row in rows if row.metrics is not None]
    undone = _first_undone(events)
    kept = [row for row in reports if row.step < undone.get(row.attempt, math.inf)]
    return Run(folder, attempts, kept, events, len(reports) - len(kept), notes)


def read_attempts(folder: Path) -> list[Attempt]:
    """The attempts of `run.json`, as they stand there. Raises ConfigError as `read_run`."""
    path = folder / RUN
    try:
        data = path.read_bytes()
    except OSError as error:
        what = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise ConfigError(
            f"{display(folder)} is not the folder of a run: {display(path)} {what}. Give the job.dump_folder of a job "
            "that this release has trained."
        ) from None
    try:
        version = msgspec.json.decode(data, type=_Head).version
        if version == VERSION:
            return msgspec.json.decode(data, type=_Attempts).attempts
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{display(path)} is damaged ({error}).") from None
    raise ConfigError(
        f"{display(path)} has version {version}, and this release of mosaic-photon reads version {VERSION}: read it "
        "with the release that wrote it."
    )


def filled(attempts: list[Attempt]) -> list[Attempt]:
    """Copies, each with the fields that it has left out."""
    whole: list[Attempt] = []
    for attempt in attempts:
        missing = [name for name in OPTIONAL if whole and getattr(attempt, name) is None]
        whole.append(msgspec.structs.replace(attempt, **{name: getattr(whole[-1], name) for name in missing}))
    return whole


def _read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """All rows in the order in which they were written, and what could not be read."""
    if not path.exists():
        return [], [f"{display(path)} is not there: nothing was reported."]
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    decoder, notes = msgspec.json.Decoder(Row), list[str]()
    try:
        rows = decoder.decode_lines(whole)
    except msgspec.MsgspecError:
        rows, notes = _read_what_can_be(whole, decoder, path)
    if rest:
        notes.append(f"{display(path)} ends in the middle of a line, which is left out.")
    return rows, notes


def _read_what_can_be(data: bytes, decoder: msgspec.json.Decoder[Row], path: Path) -> tuple[list[Row], list[str]]:
    rows, damaged = [], []
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            rows.append(decoder.decode(line))
        except msgspec.MsgspecError:
            damaged.append(number)
    some = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
    counted = "1 line" if len(damaged) == 1 else f"{len(damaged)} lines"
    return rows, [f"{display(path)}: {counted} cannot be read, and left out: {some}."]


def _first_undone(events: Iterable[Row]) -> dict[int, float]:
    """See `Run.first_undone`."""
    starts = {row.attempt: row.step for row in events if row.event == START}
    undone, first = {}, math.inf
    for attempt in sorted(starts, reverse=True):
        undone[attempt] = first
        first = min(first, starts[attempt] + 1)
    return undone
