"""Which of a record's metrics are drawn, in which plots, and what each plot says in words."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import display
from mosaic_photon.report.record import Run
from mosaic_photon.report.series import Curve, between, curves_of, shares

MOST = 8
"""Lines of a plot, and plots of a kind where runs are compared; of streams those with the most tokens."""
FEW = 4
"""Lines of a plot that are told one by one; of more the words have the range."""
LOSS = "loss_metrics/global_avg_loss"
SHARE = "share/"
"""Stands before a stream's name in the curves that are computed from `tokens/STREAM`."""
CALLED = {"loss_metrics/bits_per_byte": "training"}


@dataclass(frozen=True)
class Kind:
    """Metrics that are drawn in one plot."""

    title: str
    pattern: str
    """Of the metrics' whole names; its last group is what a line is called, without which it is the plot's title."""
    unit: str = ""
    lowest: bool | None = None
    """Whether lower is better; None where neither is."""
    log: bool = True
    """Whether a logarithmic axis is of use."""
    rough: bool = True
    """Whether it is noisy, so that means over the nearest rows are drawn over it."""
    loss: bool = False
    streams: bool = False
    """Whether lines are named after streams: those with the most tokens come first."""


KINDS = (
    Kind("Training loss", re.escape(LOSS), lowest=True, loss=True),
    Kind("Loss by stream", r"loss/(.+)", lowest=True, loss=True, streams=True),
    Kind("Validation loss", r"validation_metrics/(?:(.+)/)?loss", lowest=True, loss=True),
    Kind("Bits per byte", r"(loss|validation)_metrics/(?:(.+)/)?bits_per_byte", lowest=True, loss=True),
    Kind("Learning rate", r"lr(?:[-/](.+))?", rough=False),
    Kind("Gradient norm", r"grad_norm"),
    Kind("Throughput", r"throughput\(tps\)", "tokens a second and device", lowest=False, log=False),
    Kind("MFU", r"mfu\(%\)", "%", lowest=False, log=False),
    Kind("Memory", r"memory/max_(active|reserved)\(GiB\)", "GiB", log=False, rough=False),
    Kind("Share of streams", rf"{SHARE}(.+)", "share of tokens", log=False, rough=False, streams=True),
)


@dataclass(frozen=True)
class Shown:
    """A run, as it is named on the page."""

    name: str
    run: Run

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """By the metrics' names, with the shares of streams."""
        found = curves_of(self.run.rows)
        totals = {name.removeprefix("tokens/"): curve for name, curve in found.items() if name.startswith("tokens/")}
        return found | {SHARE + name: curve for name, curve in (shares(totals) if totals else {}).items()}

    def tokens_at(self, steps: Sequence[int]) -> NDArray[np.float64]:
        """Tokens trained on up to each step; NaN where no report tells."""
        rows = self.run.rows
        told = np.array([np.nan if row.tokens is None else row.tokens for row in rows], np.float64)
        return between(np.asarray(steps), np.array([row.step for row in rows]), told)

    @cached_property
    def ledger(self) -> dict[str, float]:
        """Seconds by what they went into, as `Run.ledger`."""
        return self.run.ledger()

    @property
    def seconds(self) -> float:
        """How long the attempts ran."""
        return sum(self.ledger.values())

    @property
    def goodput(self) -> float | None:
        """Share of the time that went into steps that count; None before the first report."""
        steps = self.ledger["steps"]
        return steps / self.seconds if steps else None

    @property
    def last_step(self) -> int:
        return max((row.step for row in self.run.rows), default=0)


@dataclass(frozen=True)
class Line:
    """A curve in a plot."""

    name: str
    curve: Curve
    colour: int


@dataclass(frozen=True)
class Panel:
    """A plot."""

    title: str
    kind: Kind
    lines: list[Line]
    words: str
    """What it shows, for who does not see it."""


def shown(runs: Sequence[Run]) -> list[Shown]:
    """The runs with names that tell them apart.

    Raises:
        ConfigError: one is given twice.
    """
    folders = [Path(os.path.realpath(run.folder)) for run in runs]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise ConfigError(f"{display(runs[place].folder)} is given twice.")
    above = common_folder(folders)
    return [Shown(str(folder.relative_to(above)), run) for folder, run in zip(folders, runs, strict=True)]


def common_folder(folders: Sequence[Path]) -> Path:
    """The folder that holds all of them."""
    return Path(os.path.commonpath([folder.parent for folder in folders]))


def panels(runs: Sequence[Shown]) -> list[Panel]:
    """The plots in the order of the page: of one run a plot a kind, of several one a metric with a line a run."""
    found, colours = [], dict[str, int]()
    for kind in KINDS:
        named = members_of(kind, runs)
        if len(runs) == 1:
            known = colours if kind.loss or kind.streams else {}
            lines = [Line(name, runs[0].curves[metric], _colour(name, kind, known)) for metric, name in named]
            found += [_panel(kind.title, kind, lines)] if lines else []
            continue
        for metric, name in named:
            lines = [Line(run.name, run.curves[metric], i) for i, run in enumerate(runs) if metric in run.curves]
            found.append(_panel(kind.title if name == kind.title else f"{kind.title}: {name}", kind, lines))
    return found


def _colour(name: str, kind: Kind, known: dict[str, int]) -> int:
    """The number of what a line tells of: the same stream, set or training in all plots that share what is `known`."""
    of = kind.title.split()[0].lower() if name == kind.title else name  # "training" stands without a name in its own
    return known.setdefault(of, len(known))


def left_out(runs: Sequence[Shown]) -> list[str]:
    """A sentence for each kind that has more members than are drawn."""
    counts = {kind.title: len(members_of(kind, runs, None)) for kind in KINDS}
    return [f"{title}: {MOST} of {count} are drawn." for title, count in counts.items() if count > MOST]


def members_of(kind: Kind, runs: Sequence[Shown], most: int | None = MOST) -> list[tuple[str, str]]:
    """Metric and line's name of what any of the runs has of a kind."""
    named: dict[str, str] = {}
    for run in runs:
        for metric in run.curves:
            if match := re.fullmatch(kind.pattern, metric):
                words = [word for word in match.groups() if word]
                named[metric] = CALLED.get(metric, words[-1] if words else kind.title)
    found = list(named.items())
    if kind.streams:
        found.sort(key=lambda pair: -max(_tokens(run, pair[1]) for run in runs))
    return found[:most]


def _tokens(run: Shown, stream: str) -> float:
    curve = run.curves.get(f"tokens/{stream}")
    return float(curve.values[-1]) if curve is not None and len(curve.finite) else 0.0


def _panel(title: str, kind: Kind, lines: list[Line]) -> Panel:
    if len(lines) > FEW:
        return Panel(title, kind, lines, _many_in_words(lines))
    return Panel(title, kind, lines, " ".join(in_words(line.name, line.curve, kind) for line in lines))


def _many_in_words(lines: list[Line]) -> str:
    """Between which values the lines end."""
    ends = [(line.curve.values[line.curve.finite[-1]], line.name) for line in lines if len(line.curve.finite)]
    if not ends:
        return f"{len(lines)} lines without a finite value."
    (low, first), (high, last) = min(ends), max(ends)
    return f"{len(lines)} lines, which end between {number(low)} ({first}) and {number(high)} ({last})."


def in_words(name: str, curve: Curve, kind: Kind) -> str:
    """First, last and best value, and how many are not finite."""
    steps, values, rows = curve.steps, curve.values, curve.finite
    bad = np.flatnonzero(~np.isfinite(values))
    odd = f"{len(bad):,} of {len(values):,} values not finite, the first at step {steps[bad[0]]:,}" if len(bad) else ""
    if not len(rows):
        return f"{name}: {odd}."
    told = {"first": rows[0], "last": rows[-1]}
    best = curve.best(kind.lowest) if kind.lowest is not None else None
    if best is not None:
        told["lowest" if kind.lowest else "highest"] = best
    unit = f" {kind.unit}" if kind.unit in ("%", "GiB") else ""
    parts = [f"{word} {number(values[row])}{unit} at step {steps[row]:,}" for word, row in told.items()]
    return f"{name}: {', '.join([*parts, odd] if odd else parts)}."


def number(value: float | None) -> str:
    """Four digits, as people write them."""
    if value is None:
        return "–"
    if not np.isfinite(value):
        return "not a number" if np.isnan(value) else "infinite" if value > 0 else "minus infinite"
    return f"{value:,.0f}" if abs(value) >= 10_000 and abs(value) < 1e15 else f"{value:.4g}"
