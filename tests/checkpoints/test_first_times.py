"""What would happen for the first time late in a run is tried before its first step."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from composer.core import Callback

import jobs
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.load import load_job
from mosaic_photon.train_spec import check_job, spec_of_job

Usage = namedtuple("Usage", "total used free")
SAVE = "--checkpoint.enable=true"


def check(folder: Path, *flags: str) -> None:
    _, config, _, data = jobs.write_job(folder, folder)
    job = load_job(config, data, list(flags))
    check_job(job, spec_of_job(job))


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ("checkpoint.folder", SAVE),
        ("metrics.save_tb_folder", "--metrics.enable_tensorboard=true"),
        ("profiling.save_traces_folder", "--profiling.enable_profiling=true"),
    ],
)
def test_folders_that_are_first_written_into_later(setting: str, flag: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/taken").touch()
    with pytest.raises(ConfigError, match=rf"{setting} = '.*out/taken': .* is not a folder that can be written to"):
        check(tmp_path, flag, f"--{setting}=taken")


def test_the_first_checkpoint_must_find_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = 2 * 2048 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 256 + 2 * 64) + 64
    whole = 4 * parameters * 3  # two moments of AdamW
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(whole, 0, whole))
    check(tmp_path, SAVE)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(whole, 1, whole - 1))
    with pytest.raises(ConfigError, match=r"a checkpoint takes .* MiB, and .* has .* free"):
        check(tmp_path, SAVE)
    check(tmp_path)
    monkeypatch.setenv("RANK", "1")  # one rank looks
    check(tmp_path, SAVE)


class Unsavable(Callback):
    """Keeps what no checkpoint can hold."""

    def state_dict(self) -> dict:
        return {"open": open}


def test_a_callback_whose_state_cannot_be_saved(
    tmp_path: Path, prepared_data: Path, capfd: pytest.CaptureFixture
) -> None:
    job = jobs.JOB + f'[callbacks."{__name__}:Unsavable"]\n'
    arguments = jobs.write_job(tmp_path, prepared_data, job)
    assert jobs.run_here(arguments, "--training.steps=1") == 0
    assert jobs.run_here(arguments, "--training.steps=3", SAVE) == 1
    assert "Unsavable" in capfd.readouterr().err
    assert list(jobs.scalars(tmp_path)) == [1]
