"""The same losses in every layout, and one run that moves through all of them.

The selected cases run in one driver, see `layouts_driver`. With `LAYOUTS_TABLE=docs/layouts.md` in the environment the
differences measured are written into that file's table.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from layouts_jobs import (
    BY_STREAM,
    CALLBACKS,
    CHAIN,
    JOBS,
    LAYOUTS,
    LONG,
    LOSS,
    NORM,
    ON_03,
    ONE,
    STEPS,
    STEPS_PER_LINK,
    TOLERANCE,
    chain,
    difference,
    entry,
    layouts_of,
    run_plan,
    streams_as_in,
    went_on,
)
from mds_data import write_two_streams
from mosaic_photon.titan.releases import installed

BEGIN, END = (f"<!-- table of {installed().newest} {word} -->" for word in ("begins", "ends"))
DAILY = ("llama3, AdamW", "MPT muP, QHADOPT")
"""Jobs whose layouts are tried with every change; the others at night."""
SLOW_LAYOUTS = (
    "compile",
    "FSDP2 ×2, compile",
    "FSDP2 ×2, selective checkpointing, compile",
    "TP ×2, PP ×2",
    "TP ×2, full checkpointing",
    "DDP ×2, selective checkpointing, compile",
    "HSDP 2×2, full checkpointing",
    "TP ×2, compile",
    "PP ×2, compile",
)
DAILY_ON_03 = ("DDP ×2, TP ×2", "DDP ×2, PP ×2", "PP ×2, interleaved", "CP ×2")
"""Of the first of the jobs: the others of its layouts are in titan/test_same_on_each.py, and in the run that moves."""


class Case(NamedTuple):
    """A job in a layout, or, with no layout, in one after the other."""

    job: str
    layout: str | None


def is_slow(case: Case) -> bool:
    if case.layout is None:
        return case.job != "MPT muP, QHADOPT"
    if ON_03:
        return case.job not in (DAILY[0], LONG) or case.layout not in DAILY_ON_03
    compiled_too = "compile" in case.layout and case.job != "llama3, AdamW"
    return case.job not in DAILY or case.layout in SLOW_LAYOUTS or compiled_too


def params(cases: list[Case]) -> list:
    return [
        pytest.param(
            case, id=f"{case.job}-{case.layout or 'moving'}", marks=[pytest.mark.slow] if is_slow(case) else []
        )
        for case in cases
    ]


MATRIX = [Case(job, layout) for job in JOBS for layout in layouts_of(job)]
MOVING = [Case(job, None) for job in JOBS if job != LONG]


class Results:
    """Folders of the runs, and the differences found."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.table: dict[Case, tuple[float, float]] = {}

    def folder(self, case: Case) -> Path:
        names = [*JOBS, *LAYOUTS]
        return self.root / f"{names.index(case.job)}-{names.index(case.layout) if case.layout else 'moving'}"

    def reference(self, case: Case) -> Path:
        if case.layout is None:
            return self.root / f"{list(JOBS).index(case.job)}-unmoved"
        return self.folder(Case(case.job, ONE))


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, prepared_data: Path
) -> Iterator[Results]:
    """Runs every selected case of this file and what it is compared with."""
    results = Results(tmp_path_factory.mktemp("layouts"))
    here = [item for item in request.session.items if getattr(item, "module", None) is request.module]
    cases = [item.callspec.params["case"] for item in here if hasattr(item, "callspec")]  # type: ignore[attr-defined]
    run_plan(plan_of(cases, results, prepared_data), results.root)
    yield results
    table = render(results.table)
    print(table)
    if results.table and "LAYOUTS_TABLE" in os.environ:
        write_table(Path(os.environ["LAYOUTS_TABLE"]), table)


def plan_of(cases: list[Case], results: Results, usual: Path) -> list[dict[str, object]]:
    plan = []
    for job in dict.fromkeys(case.job for case in cases):
        data = usual
        if BY_STREAM in JOBS[job]:
            data = write_two_streams(results.root / f"data {len(plan)}", 257 if job == LONG else 65)
        layouts = [case.layout for case in cases if case.job == job]
        for layout in [ONE, *filter(None, layouts)] if any(layouts) else []:
            folder = results.folder(Case(job, layout))
            plan.append(entry(folder, layout, LAYOUTS[layout], JOBS[job], data, f"--training.steps={STEPS}"))
        if None in layouts:
            whole, steps = JOBS[job] + CALLBACKS, STEPS_PER_LINK * len(CHAIN)
            folder = results.reference(Case(job, None))
            plan.append(entry(folder, "unmoved", LAYOUTS[ONE], whole, data, f"--training.steps={steps}"))
            plan += chain(results.folder(Case(job, None)), whole, CHAIN, data)
    return plan


@pytest.mark.timeout(3600)  # the first one waits for all runs
@pytest.mark.parametrize("case", params(MATRIX))
def test_losses_and_gradient_norms_are_those_of_one_process(case: Case, results: Results) -> None:
    folder, reference = results.folder(case), results.reference(case)
    found = {tag: difference(folder, reference, tag, STEPS) for tag in (LOSS, NORM)}
    results.table[case] = (found[LOSS], found[NORM])
    assert all(found[tag] <= TOLERANCE[tag] for tag in found), found
    if BY_STREAM in JOBS[case.job]:
        streams_as_in(folder, reference, STEPS)


@pytest.mark.timeout(3600)  # the first one waits for all runs
@pytest.mark.parametrize("case", params(MOVING))
def test_a_run_that_moves_through_all_layouts_goes_on_as_if_it_stayed(case: Case, results: Results) -> None:
    found = went_on(results.folder(case), results.reference(case), case.job, STEPS_PER_LINK * len(CHAIN))
    results.table[case] = (found[LOSS], found[NORM])


def render(table: dict[Case, tuple[float, float]]) -> str:
    """Markdown: one row a layout, one column a job; largest relative difference of loss / of gradient norm."""
    columns = [job for job in JOBS if any(case.job == job for case in table)]
    rows = [row for row in (*LAYOUTS, None) if any(case.layout == row for case in table)]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        found = [table.get(Case(column, row)) for column in columns]
        cells = [f"{pair[0]:.0e} / {pair[1]:.0e}" if pair else "" for pair in found]
        lines.append(f"| {row or 'through all of them'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_table(path: Path, table: str) -> None:
    text = path.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}")
    draft.rename(path)
