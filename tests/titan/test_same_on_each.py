"""The same two files on each TorchTitan: the same numbers, under the same names. `make test-current` runs it again."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs
import mds_data
from mosaic_photon.checkpoints.contents import read_shapes

FLAGS = (
    "--training.steps=10", "--validation.enable", "--validation.steps=2", "--validation.freq=5", "--checkpoint.enable",
    "--checkpoint.interval=5", "--training.seq_len=16", "--validation.seq_len=16",
)  # fmt: skip
MPT = (
    jobs.JOB.replace('name = "llama3_mosaic"', 'name = "mpt_mup_mosaic"').replace("dim = 64", "d_model = 64")
    + "[mup]\nenabled = true\nbase_width = 32\n"
)
LOSSES = {
    "llama3": [8.12446, 8.10303, 8.04776, 7.93646, 8.06476, 7.88222, 8.07592, 7.81965, 7.93270, 7.85529],
    "mpt_mup": [7.62713, 7.62267, 7.63546, 7.62811, 7.58732, 7.58536, 7.58843, 7.59790, 7.58319, 7.55829],
}
VALIDATION = {"llama3": [8.1253, 8.0689, 8.0237], "mpt_mup": [7.6174, 7.6386, 7.6173]}
"""As TorchTitan 0.2.2 has reported them on torch 2.11: at each step, and at 1, 5 and 10."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples whose tokens are a formula's."""
    folder = tmp_path_factory.mktemp("formula")
    for split, first in (("train", 0), ("val", 500)):
        mds_data.write_mds(folder / split, 64, start=first)
    return folder


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Ten steps of Llama 3."""
    folder = tmp_path_factory.mktemp("llama3")
    assert jobs.run_here(jobs.write_job(folder, data), *FLAGS) == 0
    return folder


@pytest.fixture(scope="module")
def mpt_mup(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Ten steps of an MPT with muP."""
    folder = tmp_path_factory.mktemp("mpt_mup")
    assert jobs.run_here(jobs.write_job(folder, data, MPT), *FLAGS) == 0
    return folder


@pytest.mark.parametrize("model", ["llama3", "mpt_mup"])
def test_losses(model: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(model)
    assert list(jobs.scalars(run).values()) == pytest.approx(LOSSES[model], rel=1e-5)
    assert list(jobs.scalars(run, "validation_metrics/loss").values()) == pytest.approx(VALIDATION[model], rel=1e-5)


def test_names_in_a_checkpoint(llama3: Path) -> None:
    shapes = read_shapes(str(llama3 / "out/checkpoint/step-5"))
    layer = {
        "attention.wq.weight": (64, 64), "attention.wk.weight": (64, 64), "attention.wv.weight": (64, 64),
        "attention.wo.weight": (64, 64), "attention_norm.weight": (64,), "ffn_norm.weight": (64,),
        "feed_forward.w1.weight": (256, 64), "feed_forward.w2.weight": (64, 256), "feed_forward.w3.weight": (256, 64),
    }  # fmt: skip
    model = {f"layers.{number}.{name}": shape for number in (0, 1) for name, shape in layer.items()}
    model |= {"tok_embeddings.weight": (2048, 64), "norm.weight": (64,), "output.weight": (2048, 64)}
    assert {name: shape for name, shape in shapes.items() if name in model} == model
    kept = {name for name in shapes if name.startswith("optimizer.state.")}
    assert kept == {f"optimizer.state.{name}.{key}" for name in model for key in ("exp_avg", "exp_avg_sq", "step")}
    rest = {name for name in shapes if not name.startswith(("optimizer.", "generators.")) and name not in model}
    assert rest == {
        "train_state.step", "train_state.ntokens_seen", "lr_scheduler.last_epoch", "dataloader.mosaic_dataloader",
        "callbacks.composer_callbacks",
    }  # fmt: skip
