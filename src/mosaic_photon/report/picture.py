"""The report's first plots as a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mosaic_photon.report.page import COLOURS, GENERATOR
from mosaic_photon.report.panels import Line, Panel, Shown, panels
from mosaic_photon.report.series import smoothed, thinned

MOST = 6
"""Plots of the picture."""
DASHES = ("-", "--", ":", "-.")


def picture(runs: Sequence[Shown]) -> bytes:
    """The first plots of the page, two a row, over steps; light."""
    drawn = panels(runs)[:MOST]
    rows = max(1, (len(drawn) + 1) // 2)
    whole = Figure(figsize=(10, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(whole)
    axes = whole.subplots(rows, 2, squeeze=False).flatten()
    for axis, panel in zip(axes, drawn, strict=False):
        _draw(axis, panel, legend=len(runs) == 1 and len(panel.lines) > 1)
        for place, run in enumerate(runs):
            steps = [row.step for row in run.run.restarts()]
            colour = COLOURS[place % len(COLOURS)] if len(runs) > 1 else "gray"
            axis.vlines(steps, 0, 1, colour, "dashed", transform=axis.get_xaxis_transform(), linewidth=0.8, alpha=0.8)
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    if len(runs) > 1 and drawn:  # one for all: each plot has a line a run
        named = {line.get_label(): line for axis in axes for line in axis.get_legend_handles_labels()[0]}
        whole.legend(handles=list(named.values()), loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    else:
        whole.suptitle(runs[0].name, fontsize=10)
    for_file = io.BytesIO()
    whole.savefig(for_file, format="png", dpi=100, metadata={"Software": GENERATOR})
    return for_file.getvalue()


def _draw(axis: Axes, panel: Panel, legend: bool) -> None:
    for line in panel.lines:
        _line(axis, line, panel.kind.rough)
    axis.set_title(panel.title, fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(fontsize=7, frameon=False)


def _line(axis: Axes, line: Line, rough: bool) -> None:
    rows = thinned(line.curve.values, 1000)
    steps = line.curve.steps[rows]
    look: dict[str, Any] = {"color": COLOURS[line.colour % len(COLOURS)]}
    look["linestyle"] = DASHES[line.colour // len(COLOURS) % len(DASHES)]
    raw = line.curve.values[rows]
    if rough:
        axis.plot(steps, raw, linewidth=0.6, alpha=0.35, **look)
    axis.plot(steps, smoothed(line.curve.values, rows) if rough else raw, linewidth=1.4, label=line.name, **look)
