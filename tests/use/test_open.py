"""A checkpoint is opened as the model of its job."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mosaic_photon.errors import ConfigError
from mosaic_photon.use.checkpoint import check_weights, find_checkpoint, job_model
from use import trained


@pytest.mark.parametrize(("name", "overrides"), [("llama3", trained.SMALL), ("mpt_mup", trained.MPT)])
def test_a_checkpoint_is_opened(tmp_path: Path, name: str, overrides: str) -> None:
    model, drawn, folder = trained.saved(tmp_path, name, overrides)
    (tmp_path / "out/checkpoint/step-20").mkdir()  # half-written
    assert find_checkpoint(model) == find_checkpoint(model, str(folder)) == str(folder)
    opened = trained.opened(model, folder)
    assert all(torch.equal(value, drawn.state_dict()[key]) for key, value in opened.state_dict().items())


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    _, _, folder = trained.saved(tmp_path, "llama3", trained.SMALL)
    for overrides, says in [
        ("dim = 32\nn_heads = 4\nn_layers = 2\n", r"is \[2048, 64\] in it and \[2048, 32\] in the job"),
        (trained.SMALL.replace("n_layers = 2", "n_layers = 3"), r"it lacks layers.2.\* \(9 tensors\)"),
        (trained.SMALL + "rope_theta = 10\n", r"rope_theta is 500000 in the checkpoint and 10 in the job"),
    ]:
        other = job_model(str(trained.write_job(tmp_path / "other", "llama3", overrides)))
        with pytest.raises(ConfigError, match=says):
            check_weights(other, str(folder))
    mpt = job_model(str(trained.write_job(tmp_path / "mpt", "mpt_mup", trained.MPT)))
    with pytest.raises(ConfigError, match=r"it lacks layers.0.\* \(12 tensors\)"):
        check_weights(mpt, str(folder))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    model = job_model(str(trained.write_job(tmp_path, "llama3", trained.SMALL)))
    for folder, says in [("none", "no such folder"), (".", "no whole checkpoint in it")]:
        with pytest.raises(ConfigError, match=says):
            find_checkpoint(model, str(tmp_path / folder))
    folder = tmp_path / "out/checkpoint/step-10"
    trained.write_checkpoint(folder, model)
    (folder / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(ConfigError, match="is damaged"):
        check_weights(model, str(folder))
