"""All callbacks that work, together in each layout and after a resume: the numbers of one plain process.

A case is a run of two parts: `threshold_stopper` ends the first, and the second goes on from its checkpoint until
`early_stopper` ends it. The reference is one process that nobody interrupts. `works.WORKS` says what shows that a
callback is right; docs/callbacks.md has the table of what is found here.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from works import COLUMNS, LAYOUT_OF, WORKS, Works, tables

import jobs
from layouts_jobs import DATA, JOB, LAYOUTS, ONE, Layout, run_plan

STEPS = 12
PAUSE, END = 5, 8
"""Where the two stoppers end the parts: the loss of step 5 is the first below 8.05, that of step 2 the largest."""
TOLERANCE = 1e-3
"""Largest relative difference of a number from one process's; the layout matrix's for gradient norms."""
DAILY = ("selective", "PP 2")
FLAGS = ("--validation.enable", "--validation.steps=-1", "--checkpoint.enable", "--checkpoint.interval=1000")

Numbers = dict[str, dict[int, float]]
"""Tag -> step -> value."""


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, prepared_data: Path
) -> Iterator[dict[str, Path]]:
    """Folders of the reference and of the selected layouts' runs."""
    root = tmp_path_factory.mktemp("callbacks")
    here = [item for item in request.session.items if getattr(item, "module", None) is request.module]
    columns = [item.callspec.params["column"] for item in here if hasattr(item, "callspec")]
    folders = {name: root / str(index) for index, name in enumerate(["reference", *columns])}
    plan = [entry(folders["reference"], LAYOUTS[ONE], WORKS, prepared_data, 0.1)]
    for column in columns:
        works = {name: one for name, one in WORKS.items() if column not in one.refused}
        plan += [entry(folders[column], LAYOUT_OF[column], works, prepared_data, low) for low in (8.05, 0.1)]
    run_plan(plan, root)
    return folders


def entry(folder: Path, layout: Layout, works: Mapping[str, Works], data: Path, threshold: float) -> dict[str, object]:
    """One part of a run. The second part's tables are those that lie in the folder when it starts: it gets its own."""
    watched = tables(works, threshold_stopper={"threshold": threshold}) + '[callbacks."layouts_callbacks:Watch"]\n'
    eval_data = DATA.replace('split = "val"', 'split = "val"\nepoch_size = 16')
    out = JOB.replace("{out}", str(folder / "out"))
    arguments = jobs.write_job(folder / f"until-{threshold}", data, out + watched, eval_data)
    micro_batch = layout.flags[0].replace("training", "validation")
    return {
        "name": f"{folder.name} until {threshold}",
        "ranks": layout.ranks,
        "arguments": [*arguments, "--", *layout.flags, micro_batch, *FLAGS, f"--training.steps={STEPS}"],
        "log": str(folder / "log"),
    }


def numbers(folder: Path) -> Numbers:
    """What a run has written for TensorBoard; where two parts wrote, the second's."""
    found: Numbers = {}
    for events in sorted(folder.rglob("events.*"), key=lambda path: path.stat().st_mtime):
        accumulator = EventAccumulator(str(events)).Reload()
        for tag in accumulator.Tags()["scalars"]:
            found.setdefault(tag, {}).update({event.step: event.value for event in accumulator.Scalars(tag)})
    for quantity in ("tokens", "flops"):
        rates, batches = found[f"throughput/{quantity}_per_sec"], found["throughput/batches_per_sec"]
        found[f"derived/{quantity}"] = {step: rate / batches[step] for step, rate in rates.items()}
    return found


def wrong(one: Works, ours: Numbers, reference: Numbers, log: str) -> list[str]:
    """What is not as in the reference."""
    found = [] if re.search(one.prints, log) else [f"did not print {one.prints!r}"]
    for prefix in one.same:
        tags = {tag for tag in reference if tag.startswith(prefix)}
        found += [] if tags and tags <= ours.keys() else [f"{prefix}: {sorted(tags - ours.keys())} are missing"]
        found += [line for tag in tags & ours.keys() for line in differences(one, tag, ours[tag], reference[tag])]
    for tag in one.there:
        if missing := steps_of(one, reference[tag]) - ours.get(tag, {}).keys():
            found.append(f"{tag}: not at {missing}")
    return found


def differences(one: Works, tag: str, ours: dict[int, float], reference: dict[int, float]) -> Iterator[str]:
    missing = steps_of(one, reference) - ours.keys()
    more = ours.keys() - reference.keys() - {PAUSE}  # fit_end comes twice
    if missing or more:
        yield f"{tag}: not at {missing}, but at {more}"
    for step in ours.keys() & reference.keys():
        if ours[step] != pytest.approx(reference[step], rel=TOLERANCE, nan_ok=True):
            yield f"{tag}: {ours[step]} at step {step}, not {reference[step]}"


def steps_of(one: Works, reference: dict[int, float]) -> set[int]:
    return set(reference) - ({PAUSE + 1} if one.anew else set())


@pytest.mark.timeout(1200)  # the first one waits for all runs
@pytest.mark.parametrize(
    "column", [pytest.param(one, marks=[] if one in DAILY else [pytest.mark.slow]) for one in COLUMNS]
)
def test_the_numbers_of_one_process(column: str, runs: dict[str, Path]) -> None:
    reference, ours = numbers(runs["reference"]), numbers(runs[column])
    log = (runs[column] / "log").read_text()
    works = {name: one for name, one in WORKS.items() if column not in one.refused}
    found = {name: lines for name, one in works.items() if (lines := wrong(one, ours, reference, log))}
    print(f"{column}: {len(works) - len(found)} right, {len(WORKS) - len(works)} refused, wrong: {list(found)}")
    assert not found, "\n".join(f"{name}: {line}" for name, lines in found.items() for line in lines[:5])
    assert list(reference["loss_metrics/global_avg_loss"]) == list(range(1, END + 1))
    assert set(reference["l2_norm/grad/global"]) == set(range(2, END + 1, 2))  # the interval in works.py
    assert "l2_norm/param/output.weight" not in reference  # frozen
    assert re.findall(r"Stopped at step (\d+); its checkpoint is complete", log)[:: LAYOUT_OF[column].ranks] == [
        str(PAUSE),
        str(END),
    ]
