"""Batches of a run's plan that are passed over: which batch of the plan each step takes. Pure.

Users count the plan's batches from 1, as TorchTitan counts steps: without skips step s takes batch s. Here both are
counted from 0, as in `plan.py`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mosaic_photon.errors import ConfigError

FIELD = "mosaic.skip_batches"


Ranges = tuple[tuple[int, int], ...]
"""(begin, end), `end` not among them; ascending, with batches between one and the next."""


@dataclass(frozen=True)
class Skips:
    """Batches that no step takes."""

    ranges: Ranges = ()

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Skips:
        """From ranges in any order, which may overlap."""
        merged: list[tuple[int, int]] = []
        for begin, end in sorted(ranges):
            if merged and begin <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            elif begin < end:
                merged.append((begin, end))
        return cls(tuple(merged))

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Skips:
        """From what users write: "1200-1210", both ends among them, or "1500"; counted from 1.

        Raises:
            ConfigError: one that is no such text, that ends before it begins, or has a batch 0.
        """
        return cls.of(map(_range_of, texts))

    @property
    def texts(self) -> list[str]:
        """As users write them."""
        return [f"{begin + 1}-{end}" if end - begin > 1 else f"{end}" for begin, end in self.ranges]

    def __str__(self) -> str:
        return ", ".join(self.texts)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __or__(self, other: Skips) -> Skips:
        return Skips.of((*self.ranges, *other.ranges))

    def before(self, batch: int) -> Skips:
        """Those of them that come before a batch of the plan."""
        return Skips.of((begin, min(end, batch)) for begin, end in self.ranges if begin < batch)

    def without(self, other: Skips) -> Skips:
        """Those of them that are not in `other`."""
        left: list[tuple[int, int]] = list(self.ranges)
        for begin, end in other.ranges:
            left = [part for first, last in left for part in ((first, min(last, begin)), (max(first, end), last))]
            left = [(first, last) for first, last in left if first < last]
        return Skips.of(left)

    @property
    def count(self) -> int:
        """How many batches they are."""
        return sum(end - begin for begin, end in self.ranges)

    def batch_of(self, step: int) -> int:
        """The batch of the plan that a step takes."""
        batch = step
        for begin, end in self.ranges:
            if begin > batch:
                break
            batch += end - begin
        return batch

    def end_of(self, steps: int) -> int:
        """The batch of the plan behind the last that a run of so many steps takes."""
        return self.batch_of(steps - 1) + 1

    def steps_before(self, batch: int) -> int:
        """How many steps take a batch before this one."""
        return batch - self.before(batch).count

    def step_of(self, batch: int) -> int | None:
        """The step that takes a batch of the plan; None for one that is passed over."""
        return self.steps_before(batch) if self.next(batch) == batch else None

    def next(self, batch: int) -> int:
        """The first batch from this one on that is not passed over."""
        number = bisect_right(self.ranges, batch, key=lambda one: one[0]) - 1
        return batch if number < 0 else max(batch, self.ranges[number][1])

    def until(self, batch: int, end: int) -> int:
        """`end`, or where a range begins that comes after `batch` and before it."""
        number = bisect_right(self.ranges, batch, key=lambda one: one[0])
        return min(end, self.ranges[number][0]) if number < len(self.ranges) else end

    def check_ahead(self, position: int, skipped: Skips) -> None:
        """Raise ConfigError where a checkpoint has been trained on some of them.

        Args:
            position: the batch that comes next after it.
            skipped: what had been passed over by then.
        """
        if trained := self.before(position).without(skipped):
            raise ConfigError(
                f"{FIELD} = {self.texts}: batches {trained} of the plan have been trained on before the checkpoint, "
                f"whose next one is {position + 1}. Go on from a checkpoint before them with checkpoint.load_step, at "
                f"most {skipped.step_of(trained.ranges[0][0])}, or leave them out."
            )

    def check_within(self, steps: int) -> None:
        """Raise ConfigError where a range begins after the last batch that a run of so many steps takes."""
        last = self.batch_of(steps - 1)
        if outside := [text for text, (begin, _) in zip(self.texts, self.ranges, strict=True) if begin > last]:
            raise ConfigError(
                f"{FIELD} = {self.texts}: {outside[0]!r} is outside the run, which takes batches up to {last + 1} of "
                f"its plan (training.steps = {steps})."
            )


def _range_of(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    if match is None:
        raise ConfigError(f'{FIELD} = [{text!r}]: batches of the plan are named as "1500" or "1200-1210".')
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ConfigError(f'{FIELD} = [{text!r}]: ends before it begins; "{last}-{first}" is the other way round.')
    if first == 0:
        raise ConfigError(f"{FIELD} = [{text!r}]: batches of the plan are counted from 1, as steps are.")
    return first - 1, last
