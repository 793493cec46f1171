"""A loss or gradient norm that is not finite: nothing of it is saved, or its step is skipped, on all ranks alike."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from streaming import MDSWriter

import jobs
from layouts_jobs import layout, run_plan
from mds_data import sample_tokens

CALLBACK = '[callbacks."poison:Poison"]\nfirst = {first}\nlast = {last}\nrank = {rank}\nvalue = {value}\n'
SAVES = ("--checkpoint.enable=true", "--checkpoint.interval=2", "--training.steps=8")


def job(first: int, last: int | None = None, rank: int = 0, value: str = "nan") -> str:
    return jobs.JOB + CALLBACK.format(first=first, last=last or first, rank=rank, value=value)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with MDSWriter(out=str(folder / "train"), columns={"tokens": "ndarray:int32:65"}) as writer:
        for number in range(256):
            writer.write({"tokens": sample_tokens(number, 65).astype("int32")})
    return folder


DATA = jobs.DATA.partition("[mosaic_eval_dataloader]")[0]


def saved(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "out/checkpoint"))


@pytest.mark.parametrize(("step", "value"), [(6, "nan"), (8, "inf")], ids=["in between", "last step"])
def test_nothing_is_saved_and_a_restart_goes_on(
    step: int, value: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Without a report, in which TorchTitan reads loss and norm."""
    arguments = jobs.write_job(tmp_path, data, job(step, value=value), DATA)
    assert jobs.run_here(arguments, *SAVES, "--metrics.log_freq=100") == 1
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1
    assert re.search(rf"Step {step} has loss \d.* and gradient norm {value} \(stream .* samples [\d, ]+\)", said[0])
    assert '[mosaic] nonfinite = "skip"' in said[0]
    assert saved(tmp_path) == [f"step-{number}" for number in (2, 4, 6) if number < step]

    arguments = jobs.write_job(tmp_path, data, jobs.JOB, DATA)
    assert jobs.run_here(arguments, *SAVES) == 0
    whole = tmp_path / "whole"
    assert jobs.run_here(jobs.write_job(whole, data, jobs.JOB, DATA), *SAVES) == 0
    losses = jobs.scalars(whole)
    assert jobs.scalars(tmp_path) == {number: losses[number] for number in losses if number in (1, *range(step - 1, 9))}


def test_a_skipped_step_leaves_weights_and_optimizer(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    arguments = jobs.write_job(tmp_path, data, job(4) + '[mosaic]\nnonfinite = "skip"\n', DATA)
    assert jobs.run_here(arguments, *SAVES, "--checkpoint.interval=1") == 0
    assert list(jobs.scalars(tmp_path)) == [1, 2, 3, 5, 6, 7, 8]
    said = [line for line in capfd.readouterr().out.splitlines() if "makes no optimizer step" in line]
    assert len(said) == 1 and "Step 4 has loss" in said[0] and "1 skipped in this run, 1 in a row" in said[0]
    before, after, later = (jobs.whole_state(tmp_path, step) for step in (3, 4, 5))
    assert all(torch.equal(after[name], value) for name, value in before.items() if torch.is_tensor(value))
    assert not all(torch.equal(later[name], value) for name, value in after.items() if torch.is_tensor(value))
    assert all(value.isfinite().all() for value in later.values() if torch.is_tensor(value))


def test_ten_in_a_row_stop_a_job_that_skips(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    arguments = jobs.write_job(tmp_path, data, job(3, 40) + '[mosaic]\nnonfinite = "skip"\n', DATA)
    assert jobs.run_here(arguments, *SAVES, "--training.steps=30") == 1
    printed = capfd.readouterr()
    assert "Step 12 has loss" in printed.err and "10th time in a row" in printed.err
    assert "longer warm-up may bring it past" in printed.err  # what is set already is no advice
    assert printed.out.count("makes no optimizer step") == 9
    assert saved(tmp_path)[-1] != "step-12"


def test_ignored_it_goes_on(data: Path, tmp_path: Path) -> None:
    arguments = jobs.write_job(tmp_path, data, job(4) + '[mosaic]\nnonfinite = "ignore"\n', DATA)
    assert jobs.run_here(arguments, *SAVES) == 0
    assert saved(tmp_path)[-1] == "step-8"


def test_steps_within_the_backward_pass_are_seen_in_the_weights(data: Path, tmp_path: Path) -> None:
    """The gradients are gone by the time that their norm would be taken: an infinite rate ruins the weights."""
    arguments = jobs.write_job(tmp_path, data, jobs.JOB, DATA)
    early = ("--optimizer.early_step_in_backward", "--optimizer.lr=1e38", "--training.local_batch_size=4")
    assert jobs.run_here(arguments, *SAVES, "--checkpoint.interval=1", *early) == 1
    assert not (tmp_path / "out/checkpoint").exists()
    assert jobs.run_here(arguments, *early, "--mosaic.nonfinite=skip") == 1


LAYOUTS = {
    "DDP": ("stop", layout(2, 2, replicate=2, shard=1)),
    "FSDP2": ("skip", layout(2, 2, shard=2)),
    "TP": ("skip", layout(2, 4, tp=2)),
    "PP": ("stop", layout(2, 4, pp=2)),
}


@pytest.fixture(scope="module")
def ran(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A job in each layout, of which the second rank has a NaN in step 4; the folder, and how each ended."""
    root, plan = tmp_path_factory.mktemp("ranks"), []
    for name, (rule, ranks) in LAYOUTS.items():
        arguments = jobs.write_job(root / name, data, job(4, rank=1) + f'[mosaic]\nnonfinite = "{rule}"\n', DATA)
        flags = [*SAVES, *ranks.flags]
        log = str(root / name / "log")
        plan.append({"name": name, "ranks": ranks.ranks, "arguments": [*arguments, "--", *flags], "log": log})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        return root, run_plan(plan, root)


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_ranks_agree_on_what_one_of_them_has(name: str, ran: tuple[Path, dict[str, object]]) -> None:
    rule, folder, printed = LAYOUTS[name][0], ran[0] / name, (ran[0] / name / "log").read_text()
    assert printed.count("Step 4 has loss") == 1
    assert "Traceback (most recent call last)" not in printed.partition("Step 4 has loss")[0]
    assert ran[1][name] == int(rule == "stop")
    if rule == "stop":
        assert saved(folder) == ["step-2"]
    else:
        assert list(jobs.scalars(folder)) == [1, 2, 3, 5, 6, 7, 8]
        assert saved(folder)[-1] == "step-8"
