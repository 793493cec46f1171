"""The coordinate check's results as a table, a PNG and one self-contained HTML page."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mosaic_photon.files import write_whole
from mosaic_photon.mup.coord_check import BOUNDS, Activations, ConfidenceInterval, Verdict
from mosaic_photon.mup.proxy import KINDS


def table(activations: Activations) -> Table:
    """Slopes by kind (rows) at the first and last step, the interval judged, and the last step's values by size."""
    slopes, values = activations.slopes().mean(axis=0), activations.values
    last = values.shape[1] - 1
    steps = (0, last)
    title = f"slope against {activations.axis} (s.) at a step, and judged; mean |activation| at step {last}"
    out = Table(title=title, title_justify="left")
    out.add_column("", no_wrap=True)
    for step in steps:
        out.add_column(f"s. {step}", justify="right", no_wrap=True)
    out.add_column("judged", justify="right", no_wrap=True)
    for size in activations.sizes:
        out.add_column(str(size), justify="right", no_wrap=True)
    for row, (kind, interval) in enumerate(intervals(activations).items()):
        cells = [f"{slopes[row, step]:+.2f}" for step in steps]
        cells.append(f"{interval.low:+.2f} to {interval.high:+.2f}")
        out.add_row(kind, *cells, *(f"{value:.2g}" for value in values[row, last]))
    return out


def intervals(activations: Activations) -> dict[str, ConfidenceInterval]:
    """Kind -> where its slope lies by all seeds."""
    return dict(zip(KINDS, map(ConfidenceInterval.of, activations.late_slopes().T), strict=True))


def write(folder: str, title: str, activations: Activations, verdict: Verdict) -> list[Path]:
    """Write coord_check_<axis>.{json,png,html} below `folder`; returns the paths."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    png = plot(title, activations)
    files = {"json": to_json(title, activations, verdict).encode(), "png": png,
             "html": page(title, activations, verdict, png).encode()}  # fmt: skip
    paths = []
    for suffix, content in files.items():
        path = target / f"coord_check_{activations.axis}.{suffix}"
        write_whole(path, content)
        paths.append(path)
    return paths


def to_json(title: str, activations: Activations, verdict: Verdict) -> str:
    """All that was measured and judged; infinite bounds of an interval are null."""
    judged = {
        kind: [x if np.isfinite(x) else None for x in (i.low, i.high)] for kind, i in intervals(activations).items()
    }
    content = {
        "title": title, "axis": activations.axis, "sizes": activations.sizes, "kinds": list(KINDS),
        "activations": activations.values.tolist(), "slopes": activations.slopes().mean(axis=0).tolist(),
        "seeds": len(activations.runs), "intervals": judged, "verdict": verdict.word,
        "seeds_needed": verdict.seeds_needed, "findings": [str(finding) for finding in verdict.findings],
    }  # fmt: skip
    return json.dumps(content, indent=1)


def plot(title: str, activations: Activations) -> bytes:
    """One panel per layer kind: mean |activation| against size, a line per step; PNG bytes."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    steps = activations.values.shape[1]
    figure = Figure(figsize=(3.2 * len(KINDS), 3.2), layout="constrained")
    axes = figure.subplots(1, len(KINDS))
    for axis, kind, values in zip(axes, KINDS, activations.values, strict=True):
        for step in range(steps):
            color = colormaps["viridis"](step / max(1, steps - 1))
            axis.plot(activations.sizes, values[step], marker="o", markersize=3, color=color, label=f"step {step}")
        axis.set(title=kind, xlabel=activations.axis, xscale="log", yscale="log")
        axis.set_xticks(activations.sizes, [str(size) for size in activations.sizes])
        axis.minorticks_off()
    axes[0].set_ylabel("mean |activation|")
    axes[-1].legend(fontsize=6)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def page(title: str, activations: Activations, verdict: Verdict, png: bytes) -> str:
    """A page with no outside reference: the verdict, the plot, every slope."""
    bounds = BOUNDS[activations.axis]
    rows = "".join(
        f"<tr><th>{kind}</th>" + "".join(_cell(slope, step, bounds.growth) for step, slope in enumerate(row)) + "</tr>"
        for kind, row in zip(KINDS, activations.slopes().mean(axis=0), strict=True)
    )
    head = "".join(f"<th>step {step}</th>" for step in range(activations.values.shape[1]))
    image = base64.b64encode(png).decode()
    return (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>"
        "<style>body{font-family:sans-serif;margin:2em}td,th{padding:2px 8px;text-align:right}.out{color:#b00}</style>"
        f"<h1>{html.escape(title)}</h1><p><b>{html.escape(str(verdict))}</b></p>"
        f"<p>Judged: the slope's mean over the second half of the steps, 95 % interval over {len(activations.runs)} "
        f"seeds. Bounds: {bounds.growth}, and {-bounds.shrink} for all but the logits.</p>"
        f'<img alt="mean |activation| against {activations.axis}" src="data:image/png;base64,{image}">'
        f"<h2>Slopes</h2><table><tr><th></th>{head}</tr>{rows}</table>"
    )


def _cell(slope: Any, step: int, growth: float) -> str:
    out = ' class="out"' if step > 0 and not slope <= growth else ""
    return f"<td{out}>{np.round(slope, 2):+.2f}</td>"
