"""What a job's schedule does to each parameter group, without a run: numbers, a terminal drawing and a plot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MARKS = "•+x*o#@%"
POINTS = 1000
"""Steps at which the curves are computed, at most; the first and last always."""

DECAY_KINDS = {
    "coupled": "added to the gradient",
    "times lr": "share a step: lr * decay",
    "follows lr": "share a step: lr / peak lr * decay",
}


@dataclass(frozen=True)
class Group:
    """One parameter group over the run; curves have shape [points]."""

    label: str
    parameters: int
    """Number of elements."""
    peak_lr: float
    weight_decay: float
    eps: float | None
    momentum: dict[str, float]
    """beta1, beta2 and v1, as far as the optimizer has them; no schedule changes them."""
    lr: NDArray[np.float64]
    decay: NDArray[np.float64]
    """Share of a weight that decoupled decay takes away in a step; where decay is coupled, its coefficient."""


@dataclass(frozen=True)
class Preview:
    """A job's schedule."""

    title: str
    schedule: str
    steps: NDArray[np.int64]
    """Optimizer steps already taken at each point, shape [points]."""
    groups: Sequence[Group]
    decay_kind: str
    streams: Sequence[str] = ()
    """Names of the data's streams, where the data are known."""
    of_streams: Sequence[tuple[str, list[NDArray[np.float64]]]] = ()
    """More panels: name and curves, one a stream."""

    def panels(self) -> list[tuple[str, list[NDArray[np.float64]]]]:
        """Name and curves (one a group) of learning rate, momentum and weight decay."""
        flat = np.ones(len(self.steps))
        momentum = [group.momentum.get("beta1", 0.0) * flat for group in self.groups]
        return [
            ("learning rate", [group.lr for group in self.groups]),
            ("momentum (beta1)", momentum),
            (f"weight decay ({DECAY_KINDS[self.decay_kind]})", [group.decay for group in self.groups]),
        ]


def sampled_steps(total: int) -> NDArray[np.int64]:
    """At most `POINTS` of the steps 0 ... total - 1, both ends among them."""
    return np.unique(np.linspace(0, total - 1, min(total, POINTS)).round().astype(np.int64))


def rows(preview: Preview) -> list[list[str]]:
    """The table of groups, its heading first."""
    heading = ["", "group", "parameters", "peak lr", "first lr", "last lr", "weight decay", "eps", "momentum"]
    table = [heading]
    for index, group in enumerate(preview.groups):
        momentum = " ".join(f"{name}={value:g}" for name, value in group.momentum.items())
        eps = "" if group.eps is None else f"{group.eps:.3g}"
        lrs = [f"{value:.3g}" for value in (group.peak_lr, group.lr[0], group.lr[-1])]
        mark = MARKS[index % len(MARKS)]
        table.append([mark, group.label, f"{group.parameters:,}", *lrs, f"{group.weight_decay:.3g}", eps, momentum])
    return table


def drawing(steps: NDArray[np.int64], curves: Sequence[NDArray[np.float64]], width: int = 72, height: int = 10) -> str:
    """Curves as characters, one mark a curve: `height` lines of `width` columns with the range on the left."""
    top = max(float(curve.max()) for curve in curves) or 1.0
    columns = np.interp(np.linspace(steps[0], steps[-1], width), steps, np.arange(len(steps))).round().astype(int)
    canvas = np.full((height, width), " ")
    for index, curve in reversed(list(enumerate(curves))):  # the first group is drawn on top
        heights = np.round(curve[columns] / top * (height - 1)).astype(int)
        canvas[height - 1 - heights, np.arange(width)] = MARKS[index % len(MARKS)]
    lines = []
    for row, characters in enumerate(canvas):
        label = f"{top * (height - 1 - row) / (height - 1):9.3g}" if row % 3 == 0 else " " * 9
        lines.append(f"{label} ┤{''.join(characters)}")
    axis = f"step {steps[0]}".ljust(width - 12) + f"{steps[-1]:>12,}"
    return "\n".join([*lines, " " * 10 + "└" + "─" * width, " " * 11 + axis])


def figure(preview: Preview) -> bytes:
    """The panels as a PNG."""
    from matplotlib.figure import Figure

    groups = [group.label for group in preview.groups]
    panels = [(*panel, groups) for panel in preview.panels()]
    panels += [(*panel, list(preview.streams)) for panel in preview.of_streams]
    picture = Figure(figsize=(9, 2.7 * len(panels)), layout="constrained")
    axes = picture.subplots(len(panels), 1, sharex=True)
    for axis, (name, curves, labels) in zip(axes, panels, strict=True):
        for label, curve in zip(labels, curves, strict=True):
            axis.plot(preview.steps, curve, label=label)
        axis.set_ylabel(name.replace(" (", "\n("))  # as long as the panel is high
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for axis in axes[::3]:  # of the groups, and of the streams
        axis.legend(fontsize=8)
    axes[0].set_title(f"{preview.title}\n{preview.schedule}", fontsize=10)
    axes[-1].set_xlabel("optimizer step")
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
