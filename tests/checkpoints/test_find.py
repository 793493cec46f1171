"""Which checkpoint a job begins from, judged from a folder as kills, copies and users leave it."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from mosaic_photon.checkpoints.contents import read_values, saved_position
from mosaic_photon.checkpoints.find import Start, complete_steps, find_start
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import MosaicJobConfig

STATE = json.dumps({"version": 1, "samples": 12})


def job(folder: Path, **checkpoint) -> MosaicJobConfig:
    config = MosaicJobConfig()
    config.job.dump_folder = str(folder)
    for name, value in {"enable": True, **checkpoint}.items():
        setattr(config.checkpoint, name, value)
    return config


def write(folder: Path, step: int) -> Path:
    path = folder / "checkpoint" / f"step-{step}"
    state = {"weight": torch.ones(2), "dataloader.mosaic_dataloader": STATE}
    dcp.save(state, checkpoint_id=path, no_dist=True)
    return path


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Complete: 2 and 10. The rest is half-written, or not TorchTitan's."""
    for step in (2, 10, 12):
        write(tmp_path, step)
    folder = tmp_path / "checkpoint"
    (folder / "step-12/.metadata").rename(folder / "step-12/.metadata.tmp")  # killed just before its end
    (folder / "step-14").mkdir()
    for name in ("step-99-best", "old-step-50", "step-007"):
        (folder / name).mkdir()
        (folder / name / ".metadata").touch()
    (folder / "step-88").touch()
    return tmp_path


def test_only_whole_folders_with_titan_s_names_count(messy: Path) -> None:
    assert list(complete_steps(str(messy / "checkpoint"))) == [2, 10]


def test_the_newest_complete_one_is_taken(messy: Path) -> None:
    start = find_start(job(messy, initial_load_path="/weights"))
    assert (start.step, start.named_by, start.model_only) == (10, "", False)
    assert str(start) == f"Resumes from {messy}/checkpoint/step-10"
    assert find_start(job(messy, load_step=2)).step == 2


@pytest.mark.parametrize(("step", "says"), [(12, "half-written"), (14, "half-written"), (7, "no such checkpoint")])
def test_a_step_that_was_asked_for_must_be_whole(messy: Path, step: int, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"load_step = {step}: .*{says}.* \(complete are 2, 10\)"):
        find_start(job(messy, load_step=step, initial_load_path="/weights"))


@pytest.mark.parametrize("left", [(), ("checkpoint",), ("checkpoint/step-2",)])
def test_without_a_complete_one_the_initial_weights_count(tmp_path: Path, left: tuple[str, ...]) -> None:
    for name in left:
        (tmp_path / name).mkdir(parents=True)
    assert find_start(job(tmp_path)) == Start()
    start = find_start(job(tmp_path, initial_load_path="/weights", initial_load_model_only=False))
    assert (start.path, start.step, start.model_only) == ("/weights", -1, False)
    assert "Begins from /weights (checkpoint.initial_load_path)" in str(start)
    hub = find_start(job(tmp_path, initial_load_in_hf=True))
    assert (hub.hf, hub.named_by) == (True, "model.hf_assets_path")


def test_a_seed_checkpoint_gives_the_model_only(tmp_path: Path) -> None:
    write(tmp_path, 0)
    start = find_start(job(tmp_path))
    assert (start.step, start.model_only) == (0, True)
    assert saved_position(start, job(tmp_path)) == (None, 0)


def test_a_job_without_checkpoints_begins_anew(messy: Path) -> None:
    assert find_start(job(messy, enable=False)).path is None


def test_states_are_read_without_a_process_group(messy: Path) -> None:
    config = job(messy)
    assert saved_position(find_start(config), config)[0] == STATE
    assert read_values(str(messy / "checkpoint/step-10"), "callbacks.composer_callbacks") == [None]
    config.checkpoint.exclude_from_loading = ["dataloader"]
    assert saved_position(find_start(config), config) == (None, 0)


def test_states_are_read_with_the_metadata_read_once(messy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many ranks' checkpoints they are large, and each rank of a job that goes on reads them."""
    read, path = dcp.FileSystemReader.read_metadata, str(messy / "checkpoint/step-10")
    times = []
    monkeypatch.setattr(dcp.FileSystemReader, "read_metadata", lambda *args: times.append(path) or read(*args))
    assert read_values(path, "dataloader.mosaic_dataloader") == [STATE]
    assert times == [path]
