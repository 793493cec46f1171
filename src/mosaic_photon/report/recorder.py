"""Writes a run's record while its job runs: on the one rank that knows the metrics; on the others nothing is written.

`run.json` is replaced whole, once a start. `metrics.jsonl` is only appended to, a line a call of the kernel, so that a
process that is killed leaves whole lines.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import display, write_json
from mosaic_photon.report.record import (
    COMPILE,
    EARLIER,
    METRICS,
    OPTIONAL,
    RUN,
    START,
    STEPS,
    STOP,
    VERSION,
    Attempt,
    Row,
    filled,
    plain,
    read_attempts,
)

logger = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_current: Recorder | None = None


class Recorder:
    """Writes one attempt's rows.

    Args:
        folder: the job's dump_folder.
        attempt: this start, which `run.json` has.
        where: the step under way, and the tokens trained on up to here.
        waited: seconds that the steps since the last report have waited for data.
        compiled: seconds that this process has compiled for.
    """

    def __init__(
        self,
        folder: Path,
        attempt: Attempt,
        where: Callable[[], tuple[int, int]],
        waited: Callable[[], float],
        compiled: Callable[[], float],
    ) -> None:
        self.attempt, self.where, self.waited, self.compiled = attempt, where, waited, compiled
        path = folder / METRICS
        self._torn = _is_torn(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._since = time.monotonic()  # of the steps that no `steps` tells of yet
        self._elsewhere = 0.0  # seconds since then that other events tell of
        self._last_step = self._compiled = 0.0
        self._said = False

    def report(self, metrics: dict[str, Any], step: int) -> None:
        """What is logged of a step, by name; tensors are fetched from their device."""
        values = {name: plain(value if type(value) is int else float(value)) for name, value in metrics.items()}
        self._write(step, tokens=self.where()[1], metrics=values)

    def event(self, name: str, step: int | None = None, seconds: float | None = None, **facts: Any) -> None:
        """See the function of this name."""
        step = self.where()[0] if step is None else step
        if name not in (START, STEPS, STOP, COMPILE):
            self._elsewhere += seconds or 0.0
        self._write(step, event=name, seconds=seconds, facts=plain(facts) or None)

    def start(self) -> None:
        """The first step comes."""
        self._last_step, self._compiled = self.where()[0], self.compiled()
        self.event(START, seconds=time.time() - self.attempt.time, begin=self.attempt.begin)
        self._since, self._elsewhere = time.monotonic(), 0.0

    def steps(self) -> None:
        """Tell of the steps since the last time, if there are some."""
        step, now, compiled = self.where()[0], time.monotonic(), self.compiled()
        if step <= self._last_step:
            return
        if compiled > self._compiled:
            self.event(COMPILE, seconds=compiled - self._compiled)
        seconds = now - self._since - self._elsewhere
        self.event(STEPS, seconds=seconds, steps=int(step - self._last_step), data_wait=self.waited())
        self._last_step, self._compiled, self._since, self._elsewhere = step, compiled, now, 0.0

    def compiled_elsewhere(self, seconds: float) -> None:
        """So much was compiled since the last report outside steps."""
        self._compiled += seconds

    def end(self, how: str) -> None:
        """The attempt ends; in words, how."""
        self.steps()
        self.event(STOP, seconds=time.time() - self.attempt.time, how=how)
        os.close(self._fd)

    def _write(self, step: int, **fields: Any) -> None:
        """Append a row. A disk that is full costs rows, and is told once; it does not end the job."""
        row = Row(attempt=self.attempt.attempt, step=step, time=time.time(), **fields)
        line = (b"\n" if self._torn else b"") + _encode(row) + b"\n"
        try:
            self._torn = os.write(self._fd, line) < len(line)
            why = "a line was cut" if self._torn else ""
        except OSError as error:
            why = str(error.strerror)
        if why and not self._said:
            logger.warning(f"The record in {METRICS} has gaps from step {step} on: {why}.")
            self._said = True


def _is_torn(path: Path) -> bool:
    """Whether the file's last line has no end, as a machine that went down leaves it."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # there is none, or it is empty
        return False


def begin(folder: Path, attempt: Attempt, goes_on: bool, **facts: Any) -> None:
    """From now on this process writes the record in `folder`.

    Args:
        folder: the job's dump_folder.
        attempt: this start, whose number is given to it here.
        goes_on: it begins from one of the job's own checkpoints.
        **facts: see `Recorder`.
    """
    global _current
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, attempt, goes_on)
    _current = Recorder(folder, attempt, **facts)


def current() -> Recorder | None:
    """This process's; None on ranks that do not know the metrics."""
    return _current


def event(name: str, step: int | None = None, seconds: float | None = None, **facts: Any) -> None:
    """Note in the record that something has happened; on ranks that keep none this does nothing.

    Args:
        name: one of `record`'s events, or another.
        step: when; None: at the step under way.
        seconds: how long the job's steps have waited for it, where they have.
        **facts: what else is to be known: numbers, strings, lists and dicts of them.
    """
    if _current is not None:
        _current.event(name, step, seconds, **facts)


@contextmanager
def spent(name: str) -> Iterator[None]:
    """An event with the time that what is inside takes."""
    record, since = _current, time.monotonic()
    compiled = record.compiled() if record is not None else 0.0
    yield
    if record is not None:  # what is compiled inside is in this event's time, not in that of the steps
        record.compiled_elsewhere(record.compiled() - compiled)
    event(name, seconds=time.monotonic() - since)


def end(how: str) -> None:
    """The job ends; in words, how. Safe to call where none has begun."""
    global _current
    ended, _current = _current, None
    if ended is not None:
        ended.end(how)


def _claim(folder: Path, attempt: Attempt, goes_on: bool) -> None:
    """Enter the attempt in `run.json`; the record of another job is set aside."""
    try:
        entries = read_attempts(folder) if (folder / RUN).exists() else []
    except ConfigError as error:
        logger.warning(f"{error} A new record begins.")
        entries = []
    attempt.config = plain(attempt.config)
    before = filled(entries)[-1] if entries else None
    if before is None or not _same_run(before, attempt, goes_on):
        _set_aside(folder)
        before, entries = None, []
    attempt.attempt = before.attempt + 1 if before else 1
    entry = attempt if before is None else _without_what_is_as(before, attempt)
    write_json(folder / RUN, {"version": VERSION, "attempts": msgspec.to_builtins([*entries, entry])})


def _same_run(before: Attempt, attempt: Attempt, goes_on: bool) -> bool:
    """Whether the attempt goes on with the record's run, or begins the same job anew."""
    folders = [(one.config or {}).get("checkpoint", {}).get("folder") for one in (before, attempt)]
    return before.config == attempt.config or (goes_on and folders[0] == folders[1])


def _set_aside(folder: Path) -> None:
    """Move a record that is there to a folder of its own, rows first: `run.json` is what makes it a record."""
    found = [folder / name for name in (METRICS, RUN) if (folder / name).exists()]
    if not found:
        return
    numbered = (folder / EARLIER / str(number) for number in itertools.count(1))
    aside = next(one for one in numbered if not any((one / path.name).exists() for path in found))
    aside.mkdir(parents=True, exist_ok=True)
    for path in found:
        path.rename(aside / path.name)
    logger.info(f"{display(folder)} had the record of another job, which is now in {display(aside)}.")


def _without_what_is_as(before: Attempt, attempt: Attempt) -> Attempt:
    names = Attempt.__struct_fields__
    same = [name for name in names if name in OPTIONAL and getattr(before, name) == getattr(attempt, name)]
    return msgspec.structs.replace(attempt, **dict.fromkeys(same))
