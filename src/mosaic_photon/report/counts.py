"""What `mosaic-photon inspect --count` has counted, as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.models import ColumnDataSource, FactorRange, HoverTool, NumeralTickFormatter, Range1d, Span
from bokeh.plotting import figure
from bokeh.transform import dodge

from mosaic_photon.report.page import COLOURS, DASHES, Plot, render

GENERATOR = "mosaic-photon inspect --count"
"""By which a page is known as one that this command has written."""
SHARES = {"duplicates": "duplicates", "padding": "padding", "special": "special tokens"}
COMMON = 1000


@dataclass(frozen=True)
class Loader:
    """One loader of the data config."""

    name: str
    rows: list[list[str]]
    """Of its table, a stream each."""
    streams: list[dict[str, Any]]
    """The same as numbers, `dataloader.count.StreamCount` as a dict."""


def counts_page(config: str, columns: Sequence[str], loaders: Sequence[Loader], notes: Sequence[str]) -> str:
    """The whole page.

    Args:
        config: the data config's name.
        columns: headings of each loader's table.
        notes: sentences for below the tables.
    """
    return render(
        "counts.html",
        [made for made in (_tokens(loaders), _usage(loaders), _shares(loaders)) if made is not None],
        generator=GENERATOR,
        title=f"What the samples of {config} hold",
        columns=columns,
        loaders=loaders,
        notes=notes,
    )


def _named(loaders: Sequence[Loader]) -> list[tuple[str, dict[str, Any]]]:
    """All streams, without what they are together, under names that differ."""
    return [
        (loader.name if len(loader.streams) == 1 else f"{loader.name}: {stream['name']}", stream)
        for loader in loaders
        for stream in (loader.streams[:-1] or loader.streams)
    ]


def _figure(**options: Any) -> figure:
    plot = figure(sizing_mode="stretch_width", tools="", toolbar_location=None, **options)
    plot.outline_line_color = None
    return plot


def _bars(names: Sequence[str], **options: Any) -> figure:
    """Horizontal bars, the first one at the top."""
    return _figure(height=90 + 34 * len(names), y_range=FactorRange(*reversed(names)), **options)


def _tokens(loaders: Sequence[Loader]) -> Plot | None:
    known = [(name, stream["tokens"]) for name, stream in _named(loaders) if stream["tokens"] is not None]
    if not known:
        return None
    names, numbers = zip(*known, strict=True)
    plot = _bars(names, x_range=Range1d(0, 1.05 * max(numbers)))
    source = ColumnDataSource({"name": names, "tokens": numbers})
    bars = plot.hbar("name", right="tokens", source=source, height=0.6, color=COLOURS[0])
    plot.xaxis.formatter = NumeralTickFormatter(format="0.[0]a")
    plot.ygrid.visible = False
    plot.add_tools(HoverTool(renderers=[bars], tooltips=[("", "@name"), ("tokens", "@tokens{0,0}")]))
    words = "; ".join(f"{name}: {number:,}" for name, number in known)
    return Plot(plot, "Tokens", words, [])


def _usage(loaders: Sequence[Loader]) -> Plot | None:
    known = [(name, stream) for name, stream in _named(loaders) if stream["usage"]]
    if not known:
        return None
    plot = _figure(height=320, x_axis_type="log", y_range=Range1d(0, 1.02))
    legend = []
    for number, (name, stream) in enumerate(known):
        ranks, shares = zip(*stream["usage"], strict=True)
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        source = ColumnDataSource({"rank": ranks, "share": shares})
        line = plot.line("rank", "share", source=source, line_width=2, color=colour, line_dash=dash, name=name)
        tips = [("", "$name"), ("most frequent", "@rank{0,0}"), ("of all tokens", "@share{0.0%}")]
        plot.add_tools(HoverTool(renderers=[line], tooltips=tips))
        legend.append((name, colour, dash))
    plot.add_layout(Span(location=COMMON, dimension="height", line_color="#7f7f7f", line_dash="dashed"))
    plot.xaxis.axis_label, plot.yaxis.axis_label = "so many of the most frequent tokens", "share of all tokens"
    plot.xaxis.formatter, plot.yaxis.formatter = NumeralTickFormatter(format="0,0"), NumeralTickFormatter(format="0%")
    words = "; ".join(
        f"{name}: {stream['used']:,} different tokens, {stream['beyond_common']:.1%} of the text beyond the first 1,000"
        for name, stream in known
    )
    return Plot(plot, "Use of the vocabulary", f"The dashed line stands at 1,000 tokens. {words}.", legend)


def _shares(loaders: Sequence[Loader]) -> Plot | None:
    streams = _named(loaders)
    kinds = [kind for kind in SHARES if any(stream[kind] is not None for _, stream in streams)]
    names = [name for name, _ in streams]
    most = max((stream[kind] or 0 for _, stream in streams for kind in kinds), default=0)
    plot = _bars(names, x_range=Range1d(0, max(0.01, 1.05 * most)))
    for number, kind in enumerate(kinds):
        source = ColumnDataSource({"name": names, "share": [stream[kind] or 0.0 for _, stream in streams]})
        at = dodge("name", 0.26 * ((len(kinds) - 1) / 2 - number), range=plot.y_range)
        bars = plot.hbar(at, right="share", source=source, height=0.22, color=COLOURS[number], name=SHARES[kind])
        tips = [("", "@name"), ("$name", "@share{0.00%}")]
        plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    plot.xaxis.formatter = NumeralTickFormatter(format="0.[00]%")
    plot.ygrid.visible = False
    words = "; ".join(
        f"{name}: {', '.join(f'{SHARES[kind]} {stream[kind]:.2%}' for kind in kinds if stream[kind] is not None)}"
        for name, stream in streams
    )
    legend = [(SHARES[kind], COLOURS[number], "solid") for number, kind in enumerate(kinds)]
    return Plot(plot, "Duplicates, padding and special tokens", words, legend)
