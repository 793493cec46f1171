"""The report as one HTML page that needs no network: tables, and bokeh's plots with their text alternatives.

Colours of text, axes and grids are CSS variables that bokeh reads (`page.css`): one page is right in light and dark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.embed import components
from bokeh.models import (
    ColumnDataSource,
    DataRange1d,
    GlyphRenderer,
    HoverTool,
    NumeralTickFormatter,
    Scatter,
    VSpan,
)
from bokeh.models import Line as Glyph
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from mosaic_photon.report import tables
from mosaic_photon.report.panels import Line, Panel, Shown, left_out, panels
from mosaic_photon.report.series import smoothed, thinned

HERE = Path(__file__).parent
GENERATOR = "mosaic-photon report"
"""By which a page is known as one that this command has written."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c2609a", "#8a7700", "#7f7f7f")
"""After Okabe and Ito, for all kinds of colour vision; each has a contrast of 3 to the light and the dark ground."""
DASHES = ("solid", "dashed", "dotted", "dotdash")
"""Of the lines that have a colour for the second, third and fourth time."""
ALL_POINTS, FEWEST, MOST = 60_000, 60, 1200
"""Points of a page, about, and the bounds of a line's, so that it stays below 5 MB."""


Legend = list[tuple[str, str, str]]
"""What the lines of a plot are called, their colours and their dashes."""


@dataclass(frozen=True)
class Plot:
    """A plot as the templates need it."""

    figure: figure
    title: str
    words: str
    legend: Legend
    div: str = ""
    """Where it is drawn."""


def page(runs: Sequence[Shown], watched: bool = False) -> str:
    """The whole page.

    Args:
        watched: the page is written again and again while the job runs, which it says.
    """
    drawn = panels(runs)
    points = max(FEWEST, min(MOST, ALL_POINTS // max(1, sum(len(panel.lines) for panel in drawn))))
    steps = DataRange1d(range_padding=0.02)
    plots = [Plot(_figure(panel, runs, points, steps), panel.title, panel.words, _legend(panel)) for panel in drawn]
    return render(
        "page.html",
        plots,
        generator=GENERATOR,
        title=f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs compared",
        watched=watched,
        made=tables.moment(max((told for run in runs if (told := tables.last_time(run))), default=None)),
        code=(HERE / "page.js").read_text(),
        has_tokens=any(tables.last_tokens(run) is not None for run in runs),
        remarks=[*tables.remarks(runs), *left_out(runs)],
        glance=tables.glance(runs),
        spent=tables.SPENT,
        ledger_shares=_ledger_shares(runs),
        sections=_sections(runs),
    )


def render(template: str, plots: Sequence[Plot], **values: Any) -> str:
    """The page of a template, whose plots are drawn by scripts in it."""
    document = Document()
    with document.models.freeze():  # what all plots hold is collected once, and not anew with each plot
        for plot in plots:
            document.add_root(plot.figure)
    script, divs = components([plot.figure for plot in plots]) if plots else ("", ())
    templates = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters["breaks"] = _breaks
    return templates.get_template(template).render(
        style=(HERE / "page.css").read_text(),
        bokeh=Resources(mode="inline", components=["bokeh"], minified=True).render_js(),
        script=script,
        plots=[replace(plot, div=div) for plot, div in zip(plots, divs, strict=True)],
        **values,
    )


def _breaks(name: str) -> Markup:
    """A dotted key, which may go on in the next line behind a dot or an underscore."""
    return Markup(re.sub(r"([._/])", r"\1<wbr>", str(escape(name))))


def _sections(runs: Sequence[Shown]) -> list[tuple[str, list[tables.Table]]]:
    """Headings and the tables below them, without those that have nothing to tell."""
    found = [
        ("Losses", [tables.loss_table(runs)]),
        ("Time", [tables.ledger(runs), tables.attempts(runs)]),
        ("Data", [tables.streams(runs), tables.skipped(runs)]),
        ("Job" if len(runs) == 1 else "Jobs", [tables.jobs(runs), tables.configs(runs)]),
    ]
    return [(heading, there) for heading, told in found if (there := tables.present(told))]


def _ledger_shares(runs: Sequence[Shown]) -> list[tuple[str, list[tuple[str, str, float]]]]:
    """Of each run its name, and name, words and percentage of what its time went into."""
    found = []
    for run in runs:
        spent, whole = run.ledger, run.seconds
        parts = [
            (name, tables.SPENT[name], 100 * seconds / whole) for name, seconds in spent.items() if whole and seconds
        ]
        found.append((run.name, parts))
    return found


def _legend(panel: Panel) -> Legend:
    return [(line.name, _colour(line), _dash(line)) for line in panel.lines]


def _colour(line: Line) -> str:
    return COLOURS[line.colour % len(COLOURS)]


def _dash(line: Line) -> str:
    return DASHES[line.colour // len(COLOURS) % len(DASHES)]


def _figure(panel: Panel, runs: Sequence[Shown], points: int, steps: DataRange1d) -> figure:
    """The plot with a bold smoothed line over a faint one of each curve; page.js changes its axes."""
    plot = figure(
        height=300,
        sizing_mode="stretch_width",
        x_range=steps,
        y_range=DataRange1d(range_padding=0.06),
        tools="xbox_zoom",
        toolbar_location=None,
        active_drag=None,
        output_backend="canvas",
        tags=["log"] if panel.kind.log else [],
    )
    plot.xaxis.axis_label, plot.yaxis.axis_label = "step", panel.kind.unit or None
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    plot.xgrid.visible = False
    bold = [_draw(plot, line, panel.kind.rough, place, points) for place, line in enumerate(panel.lines)]
    tips = [("", "$name"), ("step", "@step{0,0}"), ("tokens", "@tokens{0.000a}"), ("value", "@raw"), ("mean", "@mean")]
    plot.add_tools(HoverTool(renderers=bold, tooltips=tips, mode="vline"))
    for place, run in enumerate(runs):
        _mark_restarts(plot, run, COLOURS[place % len(COLOURS)] if len(runs) > 1 else "#7f7f7f")
    return plot


def _draw(plot: figure, line: Line, rough: bool, place: int, points: int) -> GlyphRenderer:
    """One curve; returns its bold line."""
    curve = line.curve
    rows = thinned(curve.values, points)
    steps, tokens, raw = curve.steps[rows].astype(np.float64), curve.tokens[rows], curve.values[rows]
    mean = smoothed(curve.values, rows) if rough else raw
    with np.errstate(over="ignore"):
        columns = {"step": steps, "tokens": tokens, "raw": raw.astype(np.float32), "mean": mean.astype(np.float32)}
    source, tags = ColumnDataSource(columns), [place]
    look = {"line_color": _colour(line), "line_dash": _dash(line), "tags": tags}
    if not np.array_equal(raw, mean, equal_nan=True):
        plot.add_glyph(source, Glyph(x="step", y="raw", line_width=1, line_alpha=0.35, **look))
    bold = plot.add_glyph(source, Glyph(x="step", y="mean", line_width=2, **look), name=line.name)
    if len(curve.values) <= 50:
        dots = Scatter(x="step", y="raw", size=6, line_color=_colour(line), fill_color=_colour(line), tags=tags)
        plot.add_glyph(source, dots)
    _mark_not_finite(plot, steps, tokens, raw, _colour(line), tags)
    return bold


def _mark_not_finite(plot: figure, steps: Any, tokens: Any, raw: Any, colour: str, tags: list[int]) -> None:
    """A cross where a value is not finite, at the height of the finite one before."""
    bad = np.flatnonzero(~np.isfinite(raw))
    finite = np.flatnonzero(np.isfinite(raw))
    if not len(bad) or not len(finite):
        return
    before = finite[np.maximum(np.searchsorted(finite, bad) - 1, 0)]
    source = ColumnDataSource({"step": steps[bad], "tokens": tokens[bad], "raw": raw[before]})
    cross = Scatter(x="step", y="raw", marker="x", size=9, line_width=2, line_color=colour, tags=tags)
    plot.add_glyph(source, cross)


def _mark_restarts(plot: figure, run: Shown, colour: str) -> None:
    steps = [row.step for row in run.run.restarts()]
    if steps:
        columns = {"step": np.array(steps, np.float64), "tokens": run.tokens_at(steps)}
        span = VSpan(x="step", line_color=colour, line_dash="dashed", line_alpha=0.8)
        plot.add_glyph(ColumnDataSource(columns), span)
