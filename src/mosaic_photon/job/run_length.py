"""How long a run is in each of Composer's units, and time strings in them. Needs nothing but Python.

Time strings are Composer's: a number and a unit, "100ba" batches (optimizer steps), "1e9tok" tokens, "5000sp" samples,
"2ep" epochs, "0.1dur" a share of the run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mosaic_photon.errors import ConfigError

UNITS = ("ba", "sp", "tok", "ep", "dur")
FINENESS = ("ba", "sp", "tok")
"""Units that a run counts in, each a multiple of the one after it."""

_TIME = re.compile(r"\s*([-+0-9._e]+?)\s*(ba|sp|tok|ep|dur|sec|iter)\s*", re.IGNORECASE)
_CLOCK = re.compile(r"(?=.)(\d+h)?(\d+m)?(\d+s)?")


@dataclass(frozen=True)
class Position:
    """Where a run was when it was resumed: what it had consumed by then, in batches of any size."""

    steps: int = 0
    samples: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class RunLength:
    """A run's length, and what one optimizer step is in other units; None where the run does not know."""

    steps: int
    batch_samples: int | None = None
    """Samples in the global batch."""
    batch_tokens: int | None = None
    """Tokens in the global batch: samples times sequence length."""
    epoch_batches: int | None = None
    """Optimizer steps an epoch."""
    begin: Position = Position()
    """Steps after it are of this run's batch."""

    def at(self, step: int, unit: str) -> int:
        """How many of `unit` ("ba", "sp" or "tok") have been consumed when `step` steps have been made.

        Steps before `begin` are taken as equal among themselves. Raises ConfigError as `per_step`.
        """
        per_step, begin = self.per_step(unit), self.begin
        before = {"ba": begin.steps, "sp": begin.samples, "tok": begin.tokens}[unit]
        if step < begin.steps:
            return before * step // begin.steps
        return before + (step - begin.steps) * per_step

    def total(self, unit: str) -> int:
        """The whole run's length in `unit`."""
        return self.at(self.steps, unit)

    def per_step(self, unit: str) -> int:
        """How many of `unit` ("ba", "sp" or "tok") one step is.

        Raises:
            ConfigError: the run does not know.
        """
        amount = {"ba": 1, "sp": self.batch_samples, "tok": self.batch_tokens}[unit]
        if amount is None:
            raise ConfigError(f"time unit {unit!r}: this run does not know its {unit} a step; use 'ba' or 'dur'")
        return amount


@dataclass(frozen=True)
class Duration:
    """A parsed time string."""

    value: float
    unit: str

    def to(self, unit: str, run: RunLength) -> int:
        """This time in `unit`, a whole number; a share of the run is rounded down, as Composer does.

        Raises:
            ConfigError: the run does not know how long one is in the other.
        """
        if self.unit == "dur":
            return int(self.value * run.total(unit))
        if self.unit == "ep":
            if run.epoch_batches is None:
                raise ConfigError("time unit 'ep': this run does not know how long an epoch is; use 'ba' or 'dur'")
            return int(self.value) * run.epoch_batches * run.per_step(unit)
        if self.unit == "ba":
            return run.at(int(self.value), unit)
        return int(self.value) * run.per_step(unit) // run.per_step(self.unit)


def parse(text: Any) -> Duration:
    """Parse a time string.

    Raises:
        ConfigError: not one, or in a unit that a schedule cannot use.
    """
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    unit = match[2].lower() if match else ""
    if unit in ("sec", "iter") or _CLOCK.fullmatch(str(text)):
        raise ConfigError(f"time {text!r}: a schedule cannot run on the clock or on iterations; use {', '.join(UNITS)}")
    try:
        value = float(match[1]) if match else float("nan")
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise ConfigError(f"time {text!r}: a number >= 0 with a unit of {', '.join(UNITS)} is right, e.g. '100ba'")
    if unit != "dur" and value != int(value):
        raise ConfigError(f"time {text!r}: only 'dur' takes fractions")
    return Duration(value, unit)


def is_time(value: Any) -> bool:
    """Whether an argument looks like a time string."""
    return isinstance(value, str) and bool(_TIME.fullmatch(value) or _CLOCK.fullmatch(value))


def common_unit(durations: list[Duration]) -> str:
    """The finest unit that any of these counts in: in it all of them are whole numbers. 'dur' and 'ep' follow."""
    used = [FINENESS.index(d.unit) for d in durations if d.unit in FINENESS]
    return FINENESS[max(used, default=0)]
