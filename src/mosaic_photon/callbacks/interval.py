"""When a callback reports: every so many batches, or as often as a Composer time string says."""

import warnings
from typing import Any

from composer.core import State, Time, TimeUnit

from mosaic_photon.errors import ConfigError

RECOMMENDED_BATCHES = 10
"""Reports closer together than this slow training down visibly."""

ROUNDING = 1e-9
"""0.3 / 0.1 is a little less than 3."""


class Interval:
    """Says, before an optimizer step, whether that step and the one after it are to be reported.

    In batches, or as a share of a run whose length is in batches, steps n, 2n, 3n … are reported. In other units the
    length of a step is not known before it is done, so the report is of the first step that begins once the interval
    has passed, or the one after it where the step before a report is to be known too (`ahead`).

    Args:
        interval: batches, or a time string ("10ba", "1000000tok", "0.01dur"), or a composer.Time.
        ahead: `next` must be known one step before the report.

    Raises:
        ConfigError: not a positive time.
    """

    def __init__(self, interval: int | str | Time[Any], ahead: bool = False) -> None:
        self._given = self.every = Time.from_input(interval, TimeUnit.BATCH)
        if self.every.value <= 0:
            raise ConfigError(f"interval must be positive, got {interval!r}")
        if self.every.unit == TimeUnit.BATCH and self.every.value < RECOMMENDED_BATCHES:
            warnings.warn(
                f"optimizer_monitor reports every {self.every.value} batches; below {RECOMMENDED_BATCHES} it slows"
                " training down.",
                stacklevel=3,
            )
        self._ahead = ahead
        self._passed: int | None = None
        self._due_next = False

    def start(self, state: State) -> None:
        """Count from where training starts or resumes."""
        whole = state.max_duration
        if self._given.unit == TimeUnit.DURATION and whole is not None and whole.unit == TimeUnit.BATCH:
            self.every = Time(max(1, round(self._given.value * whole.value)), TimeUnit.BATCH)
        self._passed = self._intervals(state)

    def due(self, state: State) -> tuple[bool, bool]:
        """(report this step, report the next one). Call once per step, with the timestamp of its beginning."""
        if self.every.unit == TimeUnit.BATCH:
            batch = state.timestamp.batch.value + 1
            return batch % self.every.value == 0, (batch + 1) % self.every.value == 0
        passed = self._intervals(state)
        crossed, self._passed = self._passed is not None and passed > self._passed, passed
        if not self._ahead:
            return crossed, False
        now, self._due_next = self._due_next, crossed
        return now, crossed

    def _intervals(self, state: State) -> int:
        """Whole intervals since training began."""
        if self.every.unit == TimeUnit.DURATION:
            elapsed = state.get_elapsed_duration()
            return int(elapsed.value / self.every.value + ROUNDING) if elapsed is not None else 0
        return int(state.timestamp.get(self.every.unit).value // self.every.value)
