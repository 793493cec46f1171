"""TorchTitan 0.3: Llama 3 with the recipe, resumed in layouts; an MPT in layouts; what the release lacks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import jobs
from mosaic_photon import register_llama3_mosaic
from mosaic_photon.doctor.machine import check_versions
from mosaic_photon.errors import ConfigError

JOB = (
    jobs.JOB.replace(
        'name = "AdamW"\nlr = 3e-3', 'name = "QHADOPT"\nlr = 3e-3\nweight_decay = 0.1\nno_decay = ["norm"]'
    )
    .replace("warmup_steps = 2\ntotal_steps = 1000", 'name = "constant_with_linear_cooldown_with_warmup"')
    .replace("[training]", '[lr_scheduler.kwargs]\nt_warmup = "2ba"\nt_cooldown = "2ba"\n[training]')
    + '[mup]\nenabled = true\nbase_width = 32\nbase_depth = 1\n[callbacks.optimizer_monitor]\ninterval = "1ba"\n'
)
"""muP, QHADOPT without decay on norms, a schedule by name, a callback that reduces over ranks."""
FLAGS = (
    "--training.steps=6", "--checkpoint.enable", "--checkpoint.interval=3", "--validation.enable",
    "--validation.steps=2", "--validation.freq=3",
)  # fmt: skip
BATCH_OF_4 = ("--training.local_batch_size=4", "--validation.local_batch_size=4")
TOLERANCE = {jobs.LOSS: 1e-4, "validation_metrics/loss": 1e-4, "grad_norm": 1e-3, "l2_norm/grad/global": 1e-3}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """Six steps in one process, with a checkpoint in the middle."""
    folder = tmp_path_factory.mktemp("recipe")
    assert jobs.run_here(jobs.write_job(folder, prepared_data, JOB), *FLAGS) == 0
    return folder


def test_the_recipe_trains(recipe: Path) -> None:
    assert list(jobs.scalars(recipe)) == list(range(1, 7))
    assert jobs.scalars(recipe, "lr") == pytest.approx({1: 0, 2: 1.5e-3, 3: 3e-3, 4: 3e-3, 5: 3e-3, 6: 1.5e-3})
    assert jobs.scalars(recipe, "l2_norm/grad/global") == pytest.approx(jobs.scalars(recipe, "grad_norm"), rel=1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        ["--parallelism.data_parallel_shard_degree=2", "--validation.steps=1"],
        ["--parallelism.tensor_parallel_degree=2"],
        ["--parallelism.pipeline_parallel_degree=2", *BATCH_OF_4, "--validation.steps=1"],
    ],
    ids=["FSDP2 ×2", "TP ×2", "PP ×2"],
)
def test_a_checkpoint_goes_on_in_each_layout(
    flags: list[str], recipe: Path, prepared_data: Path, tmp_path: Path
) -> None:
    arguments = jobs.write_job(tmp_path, prepared_data, JOB)
    shutil.copytree(recipe / "out/checkpoint/step-3", tmp_path / "out/checkpoint/step-3")
    jobs.launch(arguments, *FLAGS, *flags, ranks=2)
    for tag, tolerance in TOLERANCE.items():
        whole = {step: value for step, value in jobs.scalars(recipe, tag).items() if step > 3}
        assert jobs.scalars(tmp_path, tag) == pytest.approx(whole, rel=tolerance), tag


MPT = (
    jobs.JOB.replace('name = "llama3_mosaic"', 'name = "mpt_mup_mosaic"').replace(
        "dim = 64", "d_model = 64\ntie_word_embeddings = false\nattn_config.fused_qkv = false"
    )
    + "[mup]\nenabled = true\nbase_width = 32\n"
)


@pytest.fixture(scope="module")
def mpt(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """Four steps of an MPT in one process."""
    folder = tmp_path_factory.mktemp("mpt")
    assert jobs.run_here(jobs.write_job(folder, prepared_data, MPT)) == 0
    return folder


@pytest.mark.parametrize(
    "flags",
    [
        ["--parallelism.tensor_parallel_degree=2"],
        ["--parallelism.pipeline_parallel_degree=2", *BATCH_OF_4],
    ],
    ids=["TP ×2", "PP ×2"],
)
def test_an_mpt_trains_in_each_layout(flags: list[str], mpt: Path, prepared_data: Path, tmp_path: Path) -> None:
    jobs.launch(jobs.write_job(tmp_path, prepared_data, MPT), *flags, ranks=2)
    for tag in (jobs.LOSS, "grad_norm"):
        assert jobs.scalars(tmp_path, tag) == pytest.approx(jobs.scalars(mpt, tag), rel=TOLERANCE[tag]), tag


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--model.print_after_conversion", "model.print_after_conversion = True: TorchTitan 0.3.0 has no such"),
        ("--parallelism.disable_loss_parallel", "parallelism.disable_loss_parallel = True: TorchTitan 0.3.0 has no"),
    ],
)
def test_what_the_release_lacks_is_said(
    flag: str, said: str, tmp_path: Path, prepared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert jobs.run_here(jobs.write_job(tmp_path, prepared_data), flag) == 1
    assert f"error: {said}" in capsys.readouterr().err


def test_the_doctor_takes_the_versions_of_this_release() -> None:
    assert [finding.level for finding in check_versions()] == ["ok"]


def test_there_is_no_registry() -> None:
    with pytest.raises(
        ConfigError, match=r"has no registry that llama3_mosaic could be put into: train with python -m"
    ):
        register_llama3_mosaic()


def test_positions_begin_again_after_the_end_of_a_document() -> None:
    from mosaic_photon.titan.v03.trainer import positions_of

    tokens = torch.tensor([[5, 9, 6, 7, 9, 9, 4], [9, 5, 5, 5, 5, 5, 9]])
    assert positions_of(tokens, 9).tolist() == [[0, 1, 0, 1, 2, 0, 0], [0, 0, 1, 2, 3, 4, 5]]
    assert positions_of(tokens, bos_token_id=9).tolist() == [[0, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 0]]
    assert positions_of(tokens).tolist() == [list(range(7))] * 2
