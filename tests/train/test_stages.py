"""A job in stages, killed inside a ramp and moved from one process to four, has the steps of one that was not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import mds_data
from jobs import scalars
from layouts_jobs import BY_STREAM, JOB, LAYOUTS, LOSS, NORM, ONE, TOLERANCE, difference, entry, run_plan
from reads_callback import trained_by

SIZES = {"web": 96, "code": 48, "math": 20}
NUMBERS = {"web": 0, "code": 1000, "math": 2000}
"""Of the first sample of each."""
DATA = """
[[mosaic_stages]]
duration = "2ba"
proportion = {{ web = 0.8, code = 0.2 }}
[[mosaic_stages]]
duration = "9ba"
ramp = true
proportion = {{ web = 0.2, code = 0.3, math = 0.5 }}
[[mosaic_stages]]
proportion = {{ math = 3, code = 1 }}
[mosaic_dataloader]
name = "text"
num_workers = 0
drop_last = true
[mosaic_dataloader.dataset]
shuffle = true
num_canonical_nodes = 4
""" + "".join(f'[mosaic_dataloader.dataset.streams.{name}]\nlocal = "{{data}}/{name}"\n' for name in SIZES)
STEPS, KILLED, SAVED = 13, 8, 6
PARTS = ((ONE, 4), ("FSDP2 ×2", KILLED), ("PP ×2", 9), ("FSDP2 ×2, PP ×2", STEPS))
"""Layouts, and the step that each ends with; the second is killed in it, and its last checkpoint is of SAVED."""


def reading(folder: Path, out: Path, more: str = "") -> str:
    """The job whose steps are written below `out`, and what its ranks read in `folder`."""
    reads = f"[callbacks.'reads_callback:Reads']\nfolder = '{folder}'\nranks_of_node = 4\n"
    return JOB.replace("{out}", str(out)) + BY_STREAM + reads + more


def read(folder: Path, ranks: int) -> list[list[int]]:
    """The samples of each step, of the ranks of a pipeline's first stage; a step is one micro-batch of each."""
    of_ranks = [trained_by(folder, rank) for rank in range(ranks)]
    return [sorted(mds_data.flat(step)) for step in zip(*of_ranks, strict=True)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_killed_inside_a_ramp_and_moved_to_four_ranks_has_the_steps_of_one_process(tmp_path: Path) -> None:
    for name, samples in SIZES.items():
        mds_data.write_mds(tmp_path / name, samples, start=NUMBERS[name], encoding="ndarray:int32:65")
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    job = reading(whole, whole / "out")
    plan = [entry(whole, "whole", LAYOUTS[ONE], job, tmp_path, f"--training.steps={STEPS}", config=DATA)]
    folders = [moved / str(number) for number in range(len(PARTS))]
    for folder, (name, end) in zip(folders, PARTS, strict=True):
        kill = f"[callbacks.'reads_callback:Interrupts']\nnumber = {int(signal.SIGKILL)}\nstep = {KILLED}\n"
        job = reading(folder, moved / "out", kill if end == KILLED else "")
        flags = (f"--training.steps={end}", "--checkpoint.enable", "--checkpoint.interval=2")
        plan.append(entry(folder, name, LAYOUTS[name], job, tmp_path, *flags, config=DATA))
    results = run_plan(plan, tmp_path)
    killed = str(results.pop(PARTS[1][0]))
    assert set(results.values()) == {0} and "SIGKILL" in killed, (results, killed)

    wanted = read(whole, 1)
    assert len(wanted) == STEPS
    begins = (0, 4, SAVED, 9)
    for folder, ranks, begin, (_, end) in zip(folders, (1, 2, 1, 2), begins, PARTS, strict=True):
        assert read(folder, ranks)[: end - begin] == wanted[begin:end], folder
    for tag in (LOSS, NORM):
        assert difference(moved, whole, tag, STEPS) <= TOLERANCE[tag]
    for tag in (f"{what}/{name}" for what in ("tokens", "epochs") for name in SIZES):
        assert scalars(moved, tag) == scalars(whole, tag) and len(scalars(whole, tag)) == STEPS, tag
    math = [sum(sample >= NUMBERS["math"] for sample in step) for step in wanted]
    assert math[:2] == [0, 0] and math[-2:] == [6, 6] and 0 < sum(math[2:SAVED]) < sum(math[SAVED:11])
