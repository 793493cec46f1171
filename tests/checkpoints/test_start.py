"""What a job begins from after kills, and what of its checkpoint folder it keeps."""

import shutil
from pathlib import Path

import pytest
import torch.distributed as dist

import jobs
from mosaic_photon.checkpoints.find import Start
from mosaic_photon.errors import ConfigError
from mosaic_photon.train.loop import check_same_on_all_ranks

SAVE = ("--checkpoint.enable=true", "--checkpoint.interval=2")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """A job of four steps with a checkpoint at each second one."""
    folder = tmp_path_factory.mktemp("pretrained")
    assert jobs.run_here(jobs.write_job(folder, prepared_data), *SAVE) == 0
    return folder / "out/checkpoint/step-4"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path, pretrained: Path) -> Path:
    """Four steps from the pretrained weights."""
    folder = tmp_path_factory.mktemp("undisturbed")
    arguments = jobs.write_job(folder, prepared_data)
    assert jobs.run_here(arguments, *SAVE, f"--checkpoint.initial_load_path={pretrained}") == 0
    return folder


@pytest.mark.parametrize("left", ["checkpoint", "checkpoint/step-2", "checkpoint/step-2/__0_0.distcp"])
def test_killed_before_its_first_whole_checkpoint_a_job_begins_from_the_same_weights(
    left: str,
    tmp_path: Path,
    prepared_data: Path,
    pretrained: Path,
    undisturbed: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if left.endswith(".distcp"):
        (tmp_path / "out" / left).parent.mkdir(parents=True)
        (tmp_path / "out" / left).write_bytes(b"half of it")
    else:
        (tmp_path / "out" / left).mkdir(parents=True)
    arguments = jobs.write_job(tmp_path, prepared_data)
    assert jobs.run_here(arguments, *SAVE, f"--checkpoint.initial_load_path={pretrained}") == 0
    assert f"Begins from {pretrained} (checkpoint.initial_load_path)" in capfd.readouterr().out
    assert jobs.scalars(tmp_path) == jobs.scalars(undisturbed)
    assert (tmp_path / "out/checkpoint/step-2/.metadata").exists()


def test_half_written_checkpoints_are_passed_over(
    tmp_path: Path, prepared_data: Path, pretrained: Path, undisturbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints = tmp_path / "out/checkpoint"
    shutil.copytree(undisturbed / "out/checkpoint/step-2", checkpoints / "step-2")
    (checkpoints / "step-4").mkdir()
    arguments = jobs.write_job(tmp_path, prepared_data)
    assert jobs.run_here(arguments, *SAVE, f"--checkpoint.initial_load_path={pretrained}") == 0
    assert f"Resumes from {checkpoints}/step-2; half-written and passed over: step-4." in capfd.readouterr().out
    whole = jobs.scalars(undisturbed)
    assert jobs.scalars(tmp_path) == {step: whole[step] for step in (3, 4)}


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_keep_latest_k_counts_whole_checkpoints_and_removes_nothing_else(
    mode: str, tmp_path: Path, prepared_data: Path
) -> None:
    checkpoints = tmp_path / "out/checkpoint"
    for name in ("step-1", "step-3", "best-step-1", "step-1-keep"):  # two half-written ones, and a user's
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "of-somebody").touch()
    arguments = jobs.write_job(tmp_path, prepared_data)
    flags = ("--training.steps=9", "--checkpoint.keep_latest_k=2", f"--checkpoint.async_mode={mode}")
    assert jobs.run_here(arguments, *SAVE, *flags) == 0
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left == ["best-step-1", "step-1", "step-1-keep", "step-3", "step-8", "step-9"]


def test_what_a_job_writes_that_goes_on_from_an_older_checkpoint_stays(
    tmp_path: Path, prepared_data: Path, pretrained: Path
) -> None:
    checkpoints = tmp_path / "out/checkpoint"
    for step, like in ((2, "step-2"), (4, "step-2"), (8, "step-4"), (10, "step-4")):
        shutil.copytree(pretrained.parent / like, checkpoints / f"step-{step}")
    old = (checkpoints / "step-4/.metadata").stat().st_mtime_ns
    arguments = jobs.write_job(tmp_path, prepared_data)
    flags = ("--training.steps=5", "--checkpoint.keep_latest_k=2", "--checkpoint.load_step=2")
    assert jobs.run_here(arguments, *SAVE, *flags) == 0
    assert {path.name for path in checkpoints.iterdir()} == {f"step-{step}" for step in (2, 4, 5, 8, 10)}
    assert (checkpoints / "step-4/.metadata").stat().st_mtime_ns > old


def test_ranks_that_see_different_checkpoints_do_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose folder is not the shared one; what the ranks gather is given here."""
    seen = [({}, Start("/shared/step-4", 4)), ({}, Start())]
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda gathered, mine: gathered.__setitem__(slice(None), seen))
    with pytest.raises(ConfigError, match=r"Rank 0: Resumes from /shared/step-4\. Rank 1: Begins anew"):
        check_same_on_all_ranks({}, Start("/shared/step-4", 4))
