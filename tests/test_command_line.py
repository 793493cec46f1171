"""The command line and each mistake a user can make with it: one message, exit code 1, nothing written."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.run import parse_args as torchrun_arguments

import jobs
from mosaic_photon.job.flags import names_of
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.train_with_mosaic import parse_arguments


def test_help_imports_nothing_slow_and_points_to_titan_s_flags() -> None:
    for module in ("mosaic_photon.train_with_mosaic", "examples.mosaic_photon.train_with_mosaic"):
        command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
        run = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=True)
        assert jobs.slow_imports(run.stderr) == set()
        assert "--mosaic-config" in run.stdout and "-- --help" in run.stdout
        assert "examples/mosaic_photon/configs/mosaic_job.toml" in run.stdout


def test_help_of_all_flags_is_complete_and_imports_nothing_slow() -> None:
    """Each field once, by table, with its default and a sentence; without torch, which takes seconds to import."""
    command = [sys.executable, "-X", "importtime", "-m", "mosaic_photon.train_with_mosaic", "--", "--help"]
    run = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=True)
    assert jobs.slow_imports(run.stderr) == set()
    lines = [line.split() for line in run.stdout.splitlines()]
    listed = [words[0].removeprefix("--") for words in lines if words and words[0].startswith("--")]
    assert listed == list(names_of(MosaicJobConfig)) and len(listed) > 149
    assert "--training.seq_len  int, default 2048\n      Tokens of a sample that are predicted." in run.stdout
    assert not re.search(r"default .*\n\s*\n  --", run.stdout)  # a field without a sentence


def test_a_reader_that_has_enough_ends_a_command_without_a_traceback() -> None:
    command = [sys.executable, "-m", "mosaic_photon.cli", "completion", "bash"]
    with subprocess.Popen(command, cwd=jobs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == b"" and process.wait() == 1


@pytest.mark.parametrize(
    ("typed", "config", "flags"),
    [
        (
            ["--", "--training.steps=2", "--compile.enable"],
            "mosaic_job.toml",
            ["--training.steps=2", "--compile.enable"],
        ),
        (["--config", "my.toml", "--", "--training.steps", "2"], "my.toml", ["--training.steps", "2"]),
        ([], "job.toml", []),
    ],
)
def test_torchrun_leaves_titan_s_flags_to_titan(typed: list[str], config: str, flags: list[str]) -> None:
    """Of what is typed after the module's name it swallows a `--` that stands first."""
    left = torchrun_arguments(["-m", "mosaic_photon.train_with_mosaic", *typed]).training_script_args
    for given in (left, typed):  # and without torchrun
        ours, titan = parse_arguments(given)
        assert ours.config.endswith(config) and titan == flags


def without_tokens(data: str) -> str:
    return data.replace("{data}", "{data}-none")


MISTAKES: dict[str, tuple[Callable[[str], str], Callable[[str], str], list[str], str]] = {
    # name: (change to the job, change to the data config, flags, what the message must say)
    "malformed job": (lambda j: j + "\n[oops", lambda d: d, [], "job.toml: not valid TOML"),
    "malformed data": (lambda j: j, lambda d: d + "\n[oops", [], "data.toml"),
    "unknown table": (lambda j: j + "\n[trainig]\n", lambda d: d, [], "Did you mean 'training'?"),
    "unknown field": (lambda j: j.replace("steps = 4", "step = 4"), lambda d: d, [], "Did you mean 'steps'?"),
    "wrong type": (lambda j: j.replace("steps = 4", "steps = 'four'"), lambda d: d, [], "training.steps = 'four'"),
    "unknown model": (lambda j: j.replace("llama3_m", "lama3_m"), lambda d: d, [], "Did you mean 'llama3_mosaic'?"),
    "unknown flavor": (lambda j: j.replace("debugmodel", "debugmdel"), lambda d: d, [], "Did you mean 'debugmodel'?"),
    "unknown override": (lambda j: j.replace("n_heads =", "n_head ="), lambda d: d, [], "Did you mean 'n_heads'?"),
    "no tokenizer": (lambda j: j.replace("{tokenizer}", "{tokenizer}/none"), lambda d: d, [], "model.hf_assets_path"),
    "small vocabulary": (
        lambda j: j.replace("dim = 64", "dim = 64\nvocab_size = 2000"),
        lambda d: d,
        [],
        "2,048 tokens",
    ),
    "batch": (lambda j: j, lambda d: d, ["--training.global_batch_size=5"], "multiple of local_batch_size 2"),
    "layout": (lambda j: j, lambda d: d, ["--parallelism.tensor_parallel_degree=2"], "WORLD_SIZE"),
    "pinned memory": (
        lambda j: j,
        lambda d: d,
        ["--checkpoint.async_mode=async_with_pinned_mem"],
        "needs an accelerator",
    ),
    "no eval loader": (
        lambda j: j,
        lambda d: d[: d.index("[mosaic_eval")],
        ["--validation.enable=true"],
        "no eval loader",
    ),
    "unwritable": (lambda j: j.replace("{out}", "{tokenizer}/tokenizer.json/out"), lambda d: d, [], "job.dump_folder"),
    "optimizer field": (lambda j: j.replace("lr = 3e-3", "lr = 3e-3\nv1 = 0.5"), lambda d: d, [], "does not take it"),
    "optimizer": (lambda j: j.replace('"AdamW"', '"AdmW"'), lambda d: d, [], "Did you mean 'AdamW'?"),
    "schedule": (
        lambda j: j.replace("warmup_steps = 2\ntotal_steps = 1000", "name = 'constant_with_sqrt_cooldwn'"),
        lambda d: d,
        [],
        "Did you mean 'constant_with_",
    ),
    "warm-up": (lambda j: j, lambda d: d, ["--lr_scheduler.warmup_steps=-3"], "lr_scheduler.warmup_steps = -3"),
    "learning rate": (lambda j: j, lambda d: d, ["--optimizer.lr=-1"], "lr"),
    "mup": (lambda j: j + "\n[mup]\nenabled = true\n", lambda d: d, [], "base_width"),
    "mup elsewhere": (
        lambda j: (
            j[: j.index("[model.o")].replace("llama3", "qwen3") + j[j.index("[opt") :] + "\n[mup]\nenabled = true\n"
        ),
        lambda d: d,
        [],
        "has no muP",
    ),
    "callback": (lambda j: j + "\n[callbacks.lr_moniter]\n", lambda d: d, [], "Did you mean 'lr_monitor'?"),
    "too little data": (lambda j: j, lambda d: d, ["--training.global_batch_size=10000"], "one global batch of 10000"),
    "seq_len": (lambda j: j, lambda d: d, ["--training.seq_len=65"], "65"),
    "missing data": (lambda j: j, without_tokens, [], "-none"),
    "unknown data key": (lambda j: j, lambda d: d.replace("shuffle_seed", "shufle_seed"), [], "shuffle_seed"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str, tmp_path: Path, prepared_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change_job, change_data, flags, expected = MISTAKES[name]
    arguments = jobs.write_job(tmp_path, prepared_data, change_job(jobs.JOB), change_data(jobs.DATA))
    before = sorted(prepared_data.rglob("*"))
    assert jobs.run_here(arguments, *flags) == 1
    printed = capfd.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and expected in errors[0], printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()
    assert sorted(prepared_data.rglob("*")) == before


def test_missing_files_and_titan_flags_without_dashes(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert jobs.run_here(["--config", str(tmp_path / "none.toml")]) == 1
    assert "none.toml: cannot read the job config" in capfd.readouterr().err
    arguments = jobs.write_job(tmp_path, tmp_path)
    assert jobs.run_here([*arguments, "--training.steps=2"]) == 1
    assert "go after `--`" in capfd.readouterr().err
    assert jobs.run_here(arguments, "--mosaic.config=other.toml") == 1
    assert "comes from the data config" in capfd.readouterr().err
    assert jobs.run_here(arguments, "--job.custom_config_module=no.such.module") == 1
    assert "job.custom_config_module: No module named" in capfd.readouterr().err
    assert jobs.run_here(arguments, "--job.custom_config_module=.beside") == 1
    assert "job.custom_config_module: '.beside' is not the whole name of a module" in capfd.readouterr().err
    assert jobs.run_here(arguments, "--training.stepz=2") == 1
    assert "--training.stepz: there is no such flag. Did you mean '--training.steps'?" in capfd.readouterr().err
