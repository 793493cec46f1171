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
MUP = "[mup]\nenabled = true\nbase_width = 32\n"
JOBS = {
    "llama3": jobs.JOB,
    "llama3 with muP": jobs.JOB + MUP + "base_depth = 1\nattention_scale = true\ninput_multiplier = 2.0\n",
    "mpt_mup": jobs.JOB.replace('"llama3_mosaic"', '"mpt_mup_mosaic"').replace("dim = 64", "d_model = 64") + MUP,
}
LOSSES = {
    "llama3": [8.12446, 8.10303, 8.04776, 7.93646, 8.06476, 7.88222, 8.07592, 7.81965, 7.93270, 7.85529],
    "llama3 with muP": [7.87742, 7.86279, 7.82856, 7.75595, 7.86875, 7.75312, 7.89266, 7.70678, 7.79773, 7.76245],
    "mpt_mup": [7.62713, 7.62267, 7.63546, 7.62811, 7.58732, 7.58536, 7.58843, 7.59790, 7.58319, 7.55829],
}
VALIDATION = {
    "llama3": [8.1253, 8.0689, 8.0237],
    "llama3 with muP": [7.8810, 7.8633, 7.8445],
    "mpt_mup": [7.6174, 7.6386, 7.6173],
}
"""As TorchTitan 0.2.2 has reported them on torch 2.11: at each step, and at 1, 5 and 10."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples whose tokens are a formula's."""
    folder = tmp_path_factory.mktemp("formula")
    for split, first in (("train", 0), ("val", 500)):
        mds_data.write_mds(folder / split, 64, start=first)
    return folder


@pytest.fixture(scope="module", params=JOBS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[str, Path]:
    """Ten steps of a model: which, and where."""
    folder = tmp_path_factory.mktemp("run")
    assert jobs.run_here(jobs.write_job(folder, data, JOBS[request.param]), *FLAGS) == 0
    return request.param, folder


def test_losses(run: tuple[str, Path]) -> None:
    model, folder = run
    assert list(jobs.scalars(folder).values()) == pytest.approx(LOSSES[model], rel=1e-5)
    assert list(jobs.scalars(folder, "validation_metrics/loss").values()) == pytest.approx(VALIDATION[model], rel=1e-5)


@pytest.mark.parametrize("run", ["llama3"], indirect=True)
def test_names_in_a_checkpoint(run: tuple[str, Path]) -> None:
    shapes = read_shapes(str(run[1] / "out/checkpoint/step-5"))
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
