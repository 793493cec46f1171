"""A global batch whose labels are all ignored makes no optimizer step; everything else goes on."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import MDSWriter

import jobs
from layouts_jobs import layout, run_plan

sys.path.insert(0, str(Path(__file__).parent / "callbacks"))
import recording

PAD = 2
EMPTY = range(12, 16)
"""Samples of step 4 that are padding but for their first token."""
DATA = """
[mosaic_dataloader]
name = "text"
[mosaic_dataloader.dataset]
local = "{data}"
split = "train"
shuffle = false
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("padded")
    random = np.random.default_rng(0)
    with MDSWriter(out=str(folder / "train"), columns={"tokens": "ndarray:int32:65"}) as writer:
        for number in range(32):
            row = random.integers(10, 2000, 65).astype("int32")
            if number in EMPTY:
                row[1:] = PAD
            writer.write({"tokens": row})
    return folder


@pytest.mark.parametrize("optimizer", ["AdamW", "QHADOPT"])
def test_the_step_is_passed_over(optimizer: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    callbacks = "[callbacks.nan_monitor]\n[callbacks.optimizer_monitor]\ninterval = 1\ncurvature = true\n"
    job = jobs.JOB.replace('"AdamW"', f'"{optimizer}"') + callbacks
    arguments = jobs.write_job(tmp_path, data, job, DATA)
    assert jobs.run_here(arguments, "--training.steps=6", "--checkpoint.enable=true", "--checkpoint.interval=1") == 0
    losses = jobs.scalars(tmp_path)
    assert list(losses) == [1, 2, 3, 5, 6]
    assert list(jobs.scalars(tmp_path, "l2_norm/grad/global")) == [1, 2, 3, 5, 6]
    said = [line for line in capfd.readouterr().out.splitlines() if "makes no optimizer step" in line]
    assert len(said) == 1
    assert "Step 4" in said[0] and "samples 12, 13, 14, 15" in said[0]

    before, after, later = (jobs.whole_state(tmp_path, step) for step in (3, 4, 5))
    assert all(torch.equal(after[name], value) for name, value in before.items() if torch.is_tensor(value))
    assert not all(torch.equal(later[name], value) for name, value in after.items() if torch.is_tensor(value))
    assert jobs.scalars(tmp_path, "n_tokens_seen") == {step: step * 256 for step in losses}
    assert jobs.scalars(tmp_path, "n_loss_tokens_seen")[6] == 5 * 256


def test_the_schedule_goes_on_and_a_resume_is_exact(data: Path, tmp_path: Path) -> None:
    flags = (
        "--training.steps=6",
        "--checkpoint.enable=true",
        "--checkpoint.interval=4",
        "--lr_scheduler.total_steps=6",
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        arguments = jobs.write_job(folder, data, dataloader=DATA)
        if folder == parts:
            (parts / "out/checkpoint").mkdir(parents=True)
            (whole / "out/checkpoint/step-4").rename(parts / "out/checkpoint/step-4")
        assert jobs.run_here(arguments, *flags) == 0
    assert jobs.scalars(parts) == {step: loss for step, loss in jobs.scalars(whole).items() if step > 4}
    assert jobs.scalars(whole, "lr")[5] == pytest.approx(3e-3 / 2)  # half of the four steps of decay


def test_composer_s_events_stay_in_pairs(data: Path, tmp_path: Path) -> None:
    recording.Recorder.events.clear()
    job = jobs.JOB + '[callbacks."recording:Recorder"]\n'
    assert jobs.run_here(jobs.write_job(tmp_path, data, job, DATA), "--training.steps=5") == 0
    of_step = [event[0] for event in recording.Recorder.events if event[2] == 3]  # batches before it
    begin = of_step.index("before_dataloader")
    assert of_step[begin:] == [
        "before_dataloader",
        "after_dataloader",
        "batch_start",
        "before_train_batch",
        "after_train_batch",
    ]
    ends = [event[2] for event in recording.Recorder.events if event[0] == "batch_end"]
    assert ends == [1, 2, 3, 4, 5]


LAYOUTS = {
    "DDP": layout(2, 2, replicate=2, shard=1),
    "FSDP2": layout(2, 2, shard=2),
    "TP": layout(2, 4, tp=2),
    "PP": layout(2, 4, pp=2),
}


@pytest.fixture(scope="module")
def ran(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job in each layout."""
    root, plan = tmp_path_factory.mktemp("ranks"), []
    for name, ranks in LAYOUTS.items():
        arguments = jobs.write_job(root / name, data, dataloader=DATA)
        flags = ["--training.steps=6", *ranks.flags]
        log = str(root / name / "log")
        plan.append({"name": name, "ranks": ranks.ranks, "arguments": [*arguments, "--", *flags], "log": log})
    assert set(run_plan(plan, root).values()) == {0}
    return root


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_ranks_of_a_layout_agree(name: str, ran: Path) -> None:
    losses = jobs.scalars(ran / name)
    assert list(losses) == [1, 2, 3, 5, 6]
    assert all(np.isfinite(list(losses.values())))
    assert (ran / name / "log").read_text().count("makes no optimizer step") == 1


def test_validation_without_labels_logs_no_loss(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """The eval set is the padding alone."""
    with MDSWriter(out=str(data / "val"), columns={"tokens": "ndarray:int32:65"}) as writer:
        for _ in range(4):
            writer.write({"tokens": np.array([5] + [PAD] * 64, dtype="int32")})
    evaluation = DATA.replace("mosaic_dataloader", "mosaic_eval_dataloader").replace("train", "val")
    arguments = jobs.write_job(tmp_path, data, dataloader=DATA + evaluation)
    assert jobs.run_here(arguments, "--training.steps=2", "--validation.enable=true") == 0
    assert jobs.scalars(tmp_path, "validation_metrics/loss") == {}
    assert "has no loss: all labels of its samples are ignored" in capfd.readouterr().out
