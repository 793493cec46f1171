"""A checkpoint of another job ends in one message before the model is built, or is loaded as far as it fits."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import jobs
from mosaic_photon.checkpoints import description
from mosaic_photon.checkpoints.checks import check_checkpoint, is_finished
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.load import load_job
from mosaic_photon.train_spec import facts_of, spec_of_job

WHOLE = ("--checkpoint.enable=true", "--checkpoint.initial_load_model_only=false")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """A whole checkpoint of a job of two layers, at step 2."""
    folder = tmp_path_factory.mktemp("saved")
    arguments = jobs.write_job(folder, prepared_data)
    assert jobs.run_here(arguments, "--checkpoint.enable=true", "--training.steps=2") == 0
    return folder / "out/checkpoint/step-2"


def check(folder: Path, *flags: str, **overrides: int) -> None:
    """Judge a job by what it is to begin from."""
    text = jobs.JOB
    for name, value in overrides.items():
        text = "\n".join(f"{name} = {value}" if line.startswith(f"{name} =") else line for line in text.splitlines())
    _, config, _, data = jobs.write_job(folder, folder, text)
    job = load_job(config, data, ["--checkpoint.enable=true", *flags])
    check_checkpoint(job, facts_of(job, spec_of_job(job)))


def without(source: Path, target: Path, *prefixes: str, **more: object) -> Path:
    """A copy of a checkpoint that lacks names with these prefixes."""
    reader = dcp.FileSystemReader(source)
    names = [name for name in reader.read_metadata().state_dict_metadata if not name.startswith(prefixes)]
    state: dict = {}
    dcp.state_dict_loader._load_state_dict(
        state, storage_reader=reader, no_dist=True, planner=dcp.default_planner._EmptyStateDictLoadPlanner()
    )
    flat = dcp._nested_dict.flatten_state_dict(state)[0]
    dcp.save({name: flat[name] for name in names} | more, checkpoint_id=target, no_dist=True)
    return target


def test_the_job_s_own_fits(saved: Path, tmp_path: Path) -> None:
    check(tmp_path, *WHOLE, f"--checkpoint.initial_load_path={saved}")
    check(tmp_path, f"--checkpoint.initial_load_path={saved}", "--optimizer.name=QHADOPT")  # the model alone is taken


@pytest.mark.parametrize(
    ("change", "flags", "says"),
    [
        ({"n_layers": 3}, (), r"lacks layers\.2\.\* \(9 tensors\) of the job's model"),
        ({"n_layers": 1}, (), r"has layers\.1\.\* \(9 tensors\), which the job's model lacks"),
        ({"dim": 32}, (), r"tok_embeddings\.weight is \[2048, 64\] in it and \[2048, 32\] in the job \(and 20 more"),
        ({}, (*WHOLE, "--optimizer.name=decoupled_lionw"), "has exp_avg_sq, step, which .*decoupled_lionw does not"),
        ({}, (*WHOLE, "--optimizer.name=QHADOPT"), "no .* of the job's optimizer QHADOPT"),
    ],
)
def test_another_job_s_is_refused(saved: Path, tmp_path: Path, change: dict, flags: tuple, says: str) -> None:
    load = f"--checkpoint.initial_load_path={saved}"
    with pytest.raises(ConfigError, match=f"(?s)step-2 is a checkpoint of another job:.*{says}"):
        check(tmp_path, load, *flags, **change)
    check(tmp_path, load, *flags, "--mosaic.allow_partial_load=true", **change)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--model.overrides.n_heads=8",), "n_heads is 4 in the checkpoint and 8 in the job"),
        (("--model.overrides.rope_theta=100",), "rope_theta is 500000 in the checkpoint and 100 in the job"),
        (("--model.overrides.norm_eps=1e-6",), "norm_eps is 1e-05 in the checkpoint and 1e-06 in the job"),
        (("--model.overrides.rope_scaling_args={scaling_factor=2.0}",), r"rope_scaling_args\.scaling_factor is 8\.0"),
        (("--mup.enabled=true", "--mup.base_width=32"), r"mup\.width is null in the checkpoint and 2\.0 in the job"),
    ],
)
def test_another_function_of_the_same_tensors_is_refused(saved: Path, tmp_path: Path, flags: tuple, says: str) -> None:
    for load in ((), WHOLE):
        load += (f"--checkpoint.initial_load_path={saved}",)
        with pytest.raises(
            ConfigError, match=f"(?s)step-2 is a checkpoint of another job:.*{says}.*allow_model_change"
        ):
            check(tmp_path, *load, *flags, "--mosaic.allow_partial_load=true")
        check(tmp_path, *load, *flags, "--mosaic.allow_model_change=true")
    check(tmp_path, *load, *flags, "--checkpoint.exclude_from_loading=model")


def test_a_resume_as_another_function(saved: Path, tmp_path: Path, prepared_data: Path, capfd: Any) -> None:
    """Of the job's own checkpoint: refused before anything is built, or said and trained."""
    arguments = jobs.write_job(tmp_path, prepared_data)
    own = shutil.copytree(saved, tmp_path / "out/checkpoint/step-2")
    flags = ("--checkpoint.enable=true", "--training.steps=3", "--model.overrides.n_heads=8")
    assert jobs.run_here(arguments, *flags) == 1
    printed = capfd.readouterr()
    assert "n_heads is 4 in the checkpoint and 8 in the job" in printed.err
    assert "Building device mesh" not in printed.out
    assert jobs.run_here(arguments, *flags, "--mosaic.allow_model_change=true") == 0
    assert "trained as another function:\n  n_heads is 4" in capfd.readouterr().out
    (own / description.FILE).unlink()
    assert jobs.run_here(arguments, *flags, "--checkpoint.load_step=2", "--checkpoint.interval=100") == 0
    assert "step-2 does not say what its model computes" in capfd.readouterr().out


def test_names_that_other_trainers_write(saved: Path, tmp_path: Path) -> None:
    load = f"--checkpoint.initial_load_path={without(saved, tmp_path / 'a', 'dataloader.', 'callbacks.')}"
    with pytest.raises(ConfigError, match=r"written with another data loader .*exclude_from_loading=dataloader"):
        check(tmp_path, *WHOLE, load)
    check(tmp_path, *WHOLE, load, "--checkpoint.exclude_from_loading=dataloader")
    with pytest.raises(ConfigError, match=r"no state 'dataloder'. Did you mean 'dataloader'"):
        check(tmp_path, *WHOLE, load, "--checkpoint.exclude_from_loading=dataloder")
    with pytest.raises(ConfigError, match=r"is not a checkpoint of this model: it has vision\.weight"):
        dcp.save({"vision.weight": torch.ones(1)}, checkpoint_id=tmp_path / "b", no_dist=True)
        check(tmp_path, f"--checkpoint.initial_load_path={tmp_path}/b", "--mosaic.allow_partial_load=true")


def test_folders_that_are_no_checkpoint(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name one of the checkpoints in it, e\.g\. '.*/step-2'"):
        check(tmp_path, f"--checkpoint.initial_load_path={saved.parent}")
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        check(tmp_path, f"--checkpoint.initial_load_path={jobs.TOKENIZER}")
    with pytest.raises(ConfigError, match=r"no \.safetensors files"):
        check(tmp_path, f"--checkpoint.initial_load_path={saved}", "--checkpoint.initial_load_in_hf=true")


def test_a_copy_that_was_cut_short_is_damaged(saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    load = f"--checkpoint.initial_load_path={copy}"
    data = copy / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-10])
    with pytest.raises(ConfigError, match=r"is damaged: __0_0\.distcp has \d+ bytes of \d+"):
        check(tmp_path, load)
    data.unlink()
    with pytest.raises(ConfigError, match=r"is damaged: __0_0\.distcp is missing"):
        check(tmp_path, load)
    (copy / ".metadata").write_bytes(b"half")
    with pytest.raises(ConfigError, match=r"\.metadata cannot be read"):
        check(tmp_path, load)


def test_a_run_cannot_go_on_from_its_model_alone(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out/checkpoint"
    states = ("optimizer.", "dataloader.", "lr_scheduler.", "train_state.", "callbacks.", "generators.")
    without(saved, folder / "step-2", *states)
    begins = r"step-2 holds only the model .*"
    ends = r"initial_load_path = '.*step-2'\. Next time, checkpoint\.last_save_model_only = false saves all"
    with pytest.raises(ConfigError, match=f"{begins} there is none, but another job .*{ends}"):
        check(tmp_path, "--training.steps=4", "--mosaic.allow_partial_load=true")
    shutil.copytree(saved, folder / "step-1")
    with pytest.raises(ConfigError, match=rf"{begins} with checkpoint\.load_step = 1 from the .*{ends}"):
        check(tmp_path, "--training.steps=4")
    check(tmp_path, "--training.steps=4", "--checkpoint.load_step=1")
    shutil.rmtree(folder / "step-1")
    check(tmp_path, "--training.steps=2")
    _, config, _, data = jobs.write_job(tmp_path, tmp_path)
    assert is_finished(load_job(config, data, ["--checkpoint.enable=true", "--training.steps=2"]))
    assert not is_finished(load_job(config, data, ["--checkpoint.enable=true", "--training.steps=3"]))


def test_what_fits_is_loaded(saved: Path, tmp_path: Path, prepared_data: Path, capfd: pytest.CaptureFixture) -> None:
    """A deeper and wider-vocabulary model takes the layers that it shares, and its own for the rest."""
    deeper = jobs.JOB.replace("n_layers = 2", "n_layers = 3").replace("steps = 4", "steps = 1")
    flags = ("--checkpoint.enable=true", "--optimizer.lr=0", "--optimizer.weight_decay=0", "--checkpoint.interval=1")
    load = (f"--checkpoint.initial_load_path={saved}", "--mosaic.allow_partial_load=true")
    for name, more in (("plain", ()), ("partial", load)):
        assert jobs.run_here(jobs.write_job(tmp_path / name, prepared_data, deeper), *flags, *more) == 0
    assert "only what fits the job is loaded:\n  it lacks layers.2.* (9 tensors)" in capfd.readouterr().out

    def weight(folder: Path, name: str) -> torch.Tensor:
        state = {name: torch.zeros(64, 64)}
        dcp.load(state, checkpoint_id=folder, no_dist=True)
        return state[name]

    plain, partial = (tmp_path / name / "out/checkpoint/step-1" for name in ("plain", "partial"))
    own, shared = "layers.2.attention.wq.weight", "layers.1.attention.wq.weight"
    assert torch.equal(weight(partial, own), weight(plain, own))
    assert torch.equal(weight(partial, shared), weight(saved, shared))
