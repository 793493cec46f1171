"""The report's tables, and the summary for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from mosaic_photon.names import dotted
from mosaic_photon.report.panels import FEW, KINDS, LOSS, Shown, members_of, number
from mosaic_photon.report.record import SKIP, START, STOP, Row
from mosaic_photon.report.series import Curve, differing

MOST_ROWS = 200
"""Rows of a table, at most."""
MOST_OF_END = 160
"""Characters of what a start of the job ended with, at most."""
SPENT = {
    "start": "start",
    "compile": "compile",
    "data_wait": "wait for data",
    "validation": "validation",
    "checkpoint": "checkpoints",
    "steps": "steps that count",
    "undone": "steps done again",
    "other": "other",
}


@dataclass(frozen=True)
class Table:
    """Rows below a heading; each row's first cell is its header."""

    caption: str
    columns: Sequence[str]
    """Empty where a table of names and values needs no heading."""
    groups: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """Rows by the name of their group, which is "" where there is one only."""


def losses(runs: Sequence[Shown]) -> dict[str, str]:
    """Name on the page of each loss that a run has, by its metric."""
    found = {}
    for kind in KINDS:
        if kind.loss:
            for metric, name in members_of(kind, runs, None):
                found[metric] = kind.title if name == kind.title else f"{kind.title}: {name}"
    return found


def loss_table(runs: Sequence[Shown]) -> Table:
    """Last and best of each loss of each run, with the difference from the first run's last."""
    several = len(runs) > 1
    columns = ["run" if several else "", "last", *(["difference"] if several else []), "lowest", "at step"]
    groups: dict[str, list[Sequence[str]]] = {}
    for metric, name in losses(runs).items():
        beside = runs[0].curves.get(metric)
        for run in runs:
            if metric in run.curves:
                cells = _loss_cells(run.curves[metric], beside if several and run is not runs[0] else None, several)
                groups.setdefault(name if several else "", []).append([run.name if several else name, *cells])
    return Table("Last and lowest losses", columns, groups)


def _loss_cells(curve: Curve, beside: Curve | None, several: bool) -> list[str]:
    best = curve.best(lowest=True)
    last = curve.values[-1]
    difference = [f"{last - beside.values[-1]:+.4g}" if beside is not None else "–"] if several else []
    lowest = ["–", "–"] if best is None else [number(curve.values[best]), f"{curve.steps[best]:,}"]
    return [number(last), *difference, *lowest]


def glance(runs: Sequence[Shown]) -> Table:
    """How far each run is, and what it makes of its time."""
    columns = ["run", "state", "steps", "tokens", "time", "tokens a second", "goodput"]
    rows: list[Sequence[str]] = []
    for run in runs:
        whole, tokens, goodput = run.seconds, last_tokens(run), run.goodput
        steps = f"{run.last_step:,}" + (f" of {planned:,}" if (planned := planned_steps(run)) else "")
        good = "–" if goodput is None else f"{goodput:.1%}"
        speed = number(tokens / whole) if tokens and whole else "–"
        tokens_cell = "–" if tokens is None else f"{tokens:,}"
        rows.append([run.name, state(run), steps, tokens_cell, duration(whole), speed, good])
    if len(runs) == 1:
        return Table("The run", [], {"": list(zip(columns, rows[0], strict=True))})
    return Table("The runs", columns, {"": rows})


def end_of(run: Shown, attempt: int | None = None) -> Row | None:
    """What an attempt, the last if not said, told of its end; nothing where it runs or was killed."""
    if attempt is None:
        attempt = run.run.attempts[-1].attempt if run.run.attempts else 0
    return next((row for row in run.run.events if row.event == STOP and row.attempt == attempt), None)


def state(run: Shown) -> str:
    """In words, whether and how it has ended."""
    if (end := end_of(run)) is None:
        return f"last heard of {moment(last_time(run))}"
    return str((end.facts or {}).get("how", "ended"))


def last_time(run: Shown) -> float | None:
    """When the record's last row was written, in Unix seconds."""
    return max((row.time for row in (*run.run.rows, *run.run.events)), default=None)


def planned_steps(run: Shown) -> int | None:
    """`training.steps` of the last attempt's job."""
    steps = [value for key, value in config_of(run).items() if key.endswith("training.steps")]
    return steps[0] if steps and isinstance(steps[0], int) else None


def config_of(run: Shown) -> dict[str, Any]:
    """The last attempt's job, versions, layout and data, dotted; without the folder, which the run is named after."""
    last = run.run.attempts[-1] if run.run.attempts else None
    if last is None:
        return {}
    parts = {
        **(last.config or {}),
        "versions": last.versions or {},
        "layout": last.layout or {},
        "data": last.data or {},
    }
    return {key: value for key, value in dotted(parts) if not key.endswith("job.dump_folder")}


def last_tokens(run: Shown) -> int | None:
    return next((row.tokens for row in reversed(run.run.rows) if row.tokens is not None), None)


def ledger(runs: Sequence[Shown]) -> Table:
    """Where the attempts' time went."""
    spent = [run.ledger for run in runs]
    rows = [[SPENT[name], *(_part(one[name], sum(one.values())) for one in spent)] for name in SPENT]
    rows.append(["all", *(duration(sum(one.values())) for one in spent)])
    return Table("What the time went into", _beside(runs), {"": rows})


def _beside(runs: Sequence[Shown]) -> list[str]:
    """The heading of a table that has a column a run; none where there is one only."""
    return ["", *(run.name for run in runs)] if len(runs) > 1 else []


def _part(seconds: float, whole: float) -> str:
    return f"{duration(seconds)} ({seconds / whole:.1%})" if seconds and whole else "–"


def attempts(runs: Sequence[Shown]) -> Table:
    """Each start of each job, and which keys were changed for it."""
    columns = ["start", "when", "after step", "from", "changed", "end"]
    return Table("Starts of the job", columns, _by_run(runs, _starts))


def _by_run(
    runs: Sequence[Shown], rows_of: Callable[[Shown], Iterable[Sequence[str]]]
) -> dict[str, list[Sequence[str]]]:
    """Each run's rows by its name, or without one where there is one run; without runs that have none."""
    found = {run.name if len(runs) > 1 else "": list(rows_of(run)) for run in runs}
    return {name: rows for name, rows in found.items() if rows}


def _starts(run: Shown) -> Iterator[Sequence[str]]:
    after = {row.attempt: f"{row.step:,}" for row in run.run.events if row.event == START}
    before: dict[str, Any] | None = None
    for attempt in run.run.attempts[-MOST_ROWS:]:
        now = dict(dotted(attempt.config or {}))
        changed = differing([before, now]) if before is not None else {}
        words = "; ".join(f"{key}: {text(old)} → {text(new)}" for key, (old, new) in changed.items())
        number = attempt.attempt
        yield [
            str(number), moment(attempt.time), after.get(number, "–"), attempt.begin, words or "–", _end(run, number),
        ]  # fmt: skip
        before = now


def _end(run: Shown, attempt: int) -> str:
    """How a start of the job ended; one that another followed and that told of no end was killed."""
    told = end_of(run, attempt)
    if told is None:
        return "–" if attempt == run.run.attempts[-1].attempt else "killed"
    how = str((told.facts or {}).get("how", "ended"))
    return how if len(how) <= MOST_OF_END else f"{how[:MOST_OF_END].rstrip()} …"


def skipped(runs: Sequence[Shown]) -> Table:
    """What the jobs left out: batches of the data's plan, and steps whose numbers were not used."""
    return Table("What was skipped", ["step", "what"], _by_run(runs, _skips))


def _skips(run: Shown) -> Iterator[Sequence[str]]:
    if run.run.attempts and (words := dict(run.run.attempts[-1].table or []).get("skipped")):
        yield ["–", words]
    for row in [row for row in run.run.events if row.event == SKIP and run.run.counts(row)][:MOST_ROWS]:
        words = "; ".join(_fact(name, value) for name, value in (row.facts or {}).items())
        yield [f"{row.step:,}", words or "–"]


def _fact(name: str, value: Any) -> str:
    """Name and value; why a step was held back, and its samples, are told in words that need no name."""
    return (
        value if name in ("why", "samples") and isinstance(value, str) else f"{name.replace('_', ' ')} {_brief(value)}"
    )


def _brief(value: Any) -> str:
    """As `text`; of a long list its begin and length."""
    if isinstance(value, list) and len(value) > FEW:
        return f"{', '.join(map(text, value[:FEW]))}, … ({len(value):,} in all)"
    return number(value) if isinstance(value, float) else text(value)


def streams(runs: Sequence[Shown]) -> Table:
    """What each stream gave."""
    return Table("Tokens by stream", ["stream", "tokens", "share", "epochs"], _by_run(runs, _streams))


def _streams(run: Shown) -> Iterator[Sequence[str]]:
    totals = {name.partition("/")[2]: curve for name, curve in run.curves.items() if name.startswith("tokens/")}
    whole = sum(curve.values[-1] for curve in totals.values())
    for name, curve in sorted(totals.items(), key=lambda pair: -pair[1].values[-1])[:MOST_ROWS]:
        tokens, epochs = curve.values[-1], run.curves.get(f"epochs/{name}")
        share = f"{tokens / whole:.1%}" if whole else "–"
        yield [name, f"{tokens:,.0f}", share, number(epochs.values[-1]) if epochs else "–"]


def jobs(runs: Sequence[Shown]) -> Table:
    """What each job showed before its first step."""
    told = [dict(run.run.attempts[-1].table or []) if run.run.attempts else {} for run in runs]
    names = dict.fromkeys(name for one in told for name in one)
    rows = [[name, *(one.get(name, "–") for one in told)] for name in names]
    return Table("The job" if len(runs) == 1 else "The jobs", _beside(runs), {"": rows})


def configs(runs: Sequence[Shown]) -> Table:
    """Of several runs the keys that differ, of one all."""
    if len(runs) == 1:
        rows = [[key, text(value)] for key, value in config_of(runs[0]).items()]
        return Table("Configuration, as it was resolved", ["key", "value"], {"": rows})
    different = differing([config_of(run) for run in runs])
    rows = [[key, *map(text, values)] for key, values in different.items()]
    return Table("Keys that differ", ["key", *(run.name for run in runs)], {"": rows})


def summary(runs: Sequence[Shown]) -> dict[str, Any]:
    """What `--json` prints: of each run last and best losses, throughput, goodput; and the keys that differ."""
    told, names = [], losses(runs)
    for run in runs:
        curves = {metric: run.curves[metric] for metric in names if metric in run.curves}
        speed = run.curves.get("throughput(tps)")
        told.append(
            {
                "run": str(run.run.folder),
                "step": run.last_step,
                "tokens": last_tokens(run),
                "seconds": run.seconds,
                "last": {metric: _plain(curve.values[-1]) for metric, curve in curves.items()},
                "best": {metric: _best(curve) for metric, curve in curves.items()},
                "throughput(tps)": _plain(np.median(speed.values[speed.finite]))
                if speed and len(speed.finite)
                else None,
                "goodput": run.goodput,
            }
        )
    return {"runs": told, "differs": differing([config_of(run) for run in runs])}


def _best(curve: Curve) -> dict[str, Any] | None:
    row = curve.best(lowest=True)
    return None if row is None else {"value": float(curve.values[row]), "step": int(curve.steps[row])}


def _plain(value: Any) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def remarks(runs: Sequence[Shown]) -> list[str]:
    """A sentence for each thing that a reader must know of the records."""
    found = [note for run in runs for note in run.run.notes]
    found += [f"{run.name}: no report yet." for run in runs if not run.run.rows]
    found += [
        f"{run.name}: {run.run.undone:,} reports were done again after a restart; the later ones are shown."
        for run in runs
        if run.run.undone
    ]
    told = [set(run.curves) for run in runs if run.curves]
    if len(told) > 1 and not set.intersection(*told):
        found.append("The runs have no metric in common: each plot shows those that have it.")
    elif len(told) > 1 and not all(LOSS in one for one in told):
        found.append(f"Not all runs have {LOSS}.")
    return found


def text(value: Any) -> str:
    """A config's value as JSON, which tells 1 from "1"."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)


def duration(seconds: float) -> str:
    """In the two largest of days, hours, minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    days, hours, minutes = int(seconds // 86400), int(seconds // 3600 % 24), int(seconds // 60 % 60)
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds % 60)} s"


def moment(seconds: float | None) -> str:
    """A date and time, UTC."""
    return "–" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def present(tables: Iterable[Table]) -> list[Table]:
    """Those that have rows."""
    return [table for table in tables if any(table.groups.values())]
