"""What is computed of a record's series: fewer points that look the same, means, what differs. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.report.record import Row

SMOOTHED_SHARE = 25
"""A smoothed value is the mean over the nearest 1/25 of the rows."""


@dataclass(frozen=True)
class Curve:
    """One metric over a run, all of shape [rows]."""

    steps: NDArray[np.int64]
    tokens: NDArray[np.float64]
    """Trained on up to the step; NaN where the record does not tell."""
    values: NDArray[np.float64]
    """NaN and infinities among them."""

    @property
    def finite(self) -> NDArray[np.int64]:
        """The rows whose value is finite."""
        return np.flatnonzero(np.isfinite(self.values))

    def best(self, lowest: bool) -> int | None:
        """The row of the lowest or highest finite value, the first of equals; None where none is finite."""
        rows = self.finite
        if not len(rows):
            return None
        kept = self.values[rows]
        return int(rows[kept.argmin() if lowest else kept.argmax()])


def curves_of(rows: Sequence[Row]) -> dict[str, Curve]:
    """The curve of each metric in the reports, by its name. A row that tells no tokens has them from its neighbours."""
    steps = np.array([row.step for row in rows], np.int64)
    tokens = between(steps, steps, np.array([row.tokens for row in rows], np.float64))  # None becomes NaN
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(tuple(row.metrics or ()), []).append(place)
    parts: dict[str, list[tuple[list[int], NDArray[np.float64]]]] = {}
    for names, places in alike.items():
        table = np.array([list(map(float, (rows[place].metrics or {}).values())) for place in places])
        for name, column in zip(names, table.T, strict=True):
            parts.setdefault(name, []).append((places, column))
    return {name: _joined(steps, tokens, columns) for name, columns in parts.items()}


def _joined(
    steps: NDArray[np.int64], tokens: NDArray[np.float64], parts: list[tuple[list[int], NDArray[np.float64]]]
) -> Curve:
    """One metric out of reports of several kinds: places among all rows, and values."""
    places = np.concatenate([np.asarray(places) for places, _ in parts])
    order = np.argsort(places)
    kept = places[order]
    return Curve(steps[kept], tokens[kept], np.concatenate([values for _, values in parts])[order])


def between(at: NDArray[Any], steps: NDArray[Any], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """The tokens at steps, between those that are known; NaN where none is."""
    known = np.isfinite(tokens)
    return np.interp(at, steps[known], tokens[known]) if known.any() else np.full(len(at), np.nan)


def thinned(values: NDArray[np.float64], points: int) -> NDArray[np.int64]:
    """Rows, about `points` at most and in order, which look on a screen like all of them.

    Of each stretch of rows the lowest, the highest and the first that is not finite, so that no spike is lost, and both
    ends.
    """
    rows = len(values)
    if rows <= points:
        return np.arange(rows)
    finite = np.isfinite(values)
    low, high = np.where(finite, values, np.inf), np.where(finite, values, -np.inf)
    kept = [0, rows - 1]
    for a, b in pairwise(np.linspace(0, rows, max(2, points // 3 + 1)).astype(int)):
        kept += [a + low[a:b].argmin(), a + high[a:b].argmax(), a + finite[a:b].argmin()]
    return np.unique(kept)


def smoothed(values: NDArray[np.float64], at: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of the finite values among the 1/25 of all rows around each row of `at`; NaN where there are none.

    Each mean is summed for itself: a value of 1e30 spoils those that it is in, and no others.
    """
    half = len(values) // SMOOTHED_SHARE // 2
    finite = np.flatnonzero(np.isfinite(values))
    first, last = np.searchsorted(finite, at - half), np.searchsorted(finite, at + half + 1)
    sums = np.add.reduceat(np.append(values[finite], 0.0), np.stack([first, last], axis=1).ravel())[::2]
    return np.where(last > first, sums / np.maximum(last - first, 1), np.nan)


def shares(totals: Mapping[str, Curve], stretches: int = 100) -> dict[str, Curve]:
    """Share of each stream in the tokens of each stretch of the run, from the streams' running totals.

    Streams that are told at other steps than the rest count between those. Stretches without tokens are left out.
    """
    steps = np.unique(np.concatenate([curve.steps for curve in totals.values()]))
    ends = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), stretches)).round().astype(int))]
    read = {name: np.interp(ends, curve.steps, curve.values, left=0.0) for name, curve in totals.items()}
    spent = {name: np.diff(values, prepend=0.0) for name, values in read.items()}
    whole = np.sum(list(spent.values()), axis=0)
    some = whole > 0
    tokens = np.sum(list(read.values()), axis=0)[some]
    return {name: Curve(ends[some], tokens, values[some] / whole[some]) for name, values in spent.items()}


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys whose values are not the same in all, with the value of each, None where there is none; by key."""
    keys = sorted({key for config in configs for key in config})
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}
