"""Flags in all the ways that people write them, what is said of wrong ones, and a user's own tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.load import read_job

OWN = """
from dataclasses import dataclass, field

@dataclass
class Training:
    patience: int = 3
    steps: int = 77

@dataclass
class Encoder:
    path: str = "here"
    sizes: list[int] = field(default_factory=list)

@dataclass
class JobConfig:
    training: Training = field(default_factory=Training)
    encoder: Encoder = field(default_factory=Encoder)
"""


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Reads a job from flags and the text of its TOML."""

    def from_flags(*flags: str, toml: str = "") -> Any:
        (tmp_path / "job.toml").write_text(toml)
        return read_job(str(tmp_path / "job.toml"), list(flags))

    return from_flags


TAKEN: dict[str, tuple[list[str], str, Any]] = {
    "equals": (["--training.steps=20"], "training.steps", 20),
    "two words": (["--training.steps", "20"], "training.steps", 20),
    "hyphens": (["--training.local-batch-size=2"], "training.local_batch_size", 2),
    "a hyphen in the table": (["--lr-scheduler.warmup-steps", "2"], "lr_scheduler.warmup_steps", 2),
    "a negative number": (["--training.global_batch_size", "-1"], "training.global_batch_size", -1),
    "a number with an exponent": (["--optimizer.lr=3e-4"], "optimizer.lr", 3e-4),
    "true": (["--compile.enable=true"], "compile.enable", True),
    "False": (["--parallelism.pipeline_parallel_expert_parallel_overlap=False"],
              "parallelism.pipeline_parallel_expert_parallel_overlap", False),
    "a word": (["--compile.enable", "off"], "compile.enable", False),
    "a flag alone": (["--compile.enable", "--training.steps=1"], "compile.enable", True),
    "no-": (["--checkpoint.no-last-save-model-only"], "checkpoint.last_save_model_only", False),
    "no_": (["--checkpoint.no_last_save_model_only"], "checkpoint.last_save_model_only", False),
    "a boolean that may be None": (["--optimizer.decouple=true"], "optimizer.decouple", True),
    "no- of one that may be None": (["--optimizer.no-decouple"], "optimizer.decouple", False),
    "None": (["--optimizer.lr=None"], "optimizer.lr", None),
    "None of a path": (["--checkpoint.initial_load_path", "None"], "checkpoint.initial_load_path", None),
    "a choice": (["--optimizer.implementation=for-loop"], "optimizer.implementation", "for-loop"),
    "commas": (["--compile.components=model,loss"], "compile.components", ["model", "loss"]),
    "words": (["--compile.components", "model", "loss", "--compile.enable"], "compile.components", ["model", "loss"]),
    "an empty list": (["--compile.components="], "compile.components", []),
    "a list as in TOML": (['--optimizer.no_decay=["a,b"]'], "optimizer.no_decay", ["a,b"]),
    "lists in a list": (['--parallelism.module_fqns_per_model_part=[["a"],["b"]]'],
                        "parallelism.module_fqns_per_model_part", [["a"], ["b"]]),
    "lists as words": (["--parallelism.module_fqns_per_model_part", "a,layers.0", "b"],
                       "parallelism.module_fqns_per_model_part", [["a", "layers.0"], ["b"]]),
    "commas and spaces": (["--checkpoint.exclude_from_loading", "optimizer, dataloader"],
                          "checkpoint.exclude_from_loading", ["optimizer", "dataloader"]),
    "a list or a word": (["--quantize.grouped_mm.mx.fqns=experts"], "quantize.grouped_mm.mx.fqns", ["experts"]),
    "a free key": (["--model.overrides.dim=128"], "model.overrides", {"n_layers": 2, "dim": 128}),
    "a free key of text": (["--model.overrides.attn_type", "flex"], "model.overrides",
                           {"n_layers": 2, "attn_type": "flex"}),
    "a free key below": (["--model.overrides.moe_args.top_k=2"], "model.overrides",
                         {"n_layers": 2, "moe_args": {"top_k": 2}}),
    "a free table": (["--model.overrides={dim = 8}"], "model.overrides", {"dim": 8}),
    "a list under a free key": (["--optimizer.kwargs.betas=[0.9, 0.95]"], "optimizer.kwargs", {"betas": [0.9, 0.95]}),
    "commas under a free key": (["--optimizer.kwargs.betas=0.9,0.95"], "optimizer.kwargs", {"betas": [0.9, 0.95]}),
    "words under a free key": (["--optimizer.kwargs.betas", "0.9", "0.95"], "optimizer.kwargs", {"betas": [0.9, 0.95]}),
    "a tuple under a free key": (["--optimizer.kwargs.betas=(0.9, 0.95)"], "optimizer.kwargs", {"betas": [0.9, 0.95]}),
    "a pattern under a free key": (["--callbacks.x.y=(a|b)"], "callbacks", {"x": {"y": "(a|b)"}}),
    "a date under a free key": (["--optimizer.kwargs.name=2026-01-02"], "optimizer.kwargs", {"name": "2026-01-02"}),
    "a comma in quotes": (['--optimizer.kwargs.x="a,b"'], "optimizer.kwargs", {"x": "a,b"}),
    "false under a free key": (["--optimizer.kwargs.amsgrad=false"], "optimizer.kwargs", {"amsgrad": False}),
    "False under a free key": (["--optimizer.kwargs.amsgrad", "False"], "optimizer.kwargs", {"amsgrad": False}),
    "None under a free key": (["--lr_scheduler.kwargs.t_max=None"], "lr_scheduler.kwargs", {"t_max": None}),
    "hyphens in a free key": (["--model.overrides.n-heads=4"], "model.overrides", {"n_layers": 2, "n_heads": 4}),
    "a callback's argument": (["--callbacks.speed-monitor.window_size=5"], "callbacks",
                              {"speed_monitor": {"window_size": 5}}),
    "a callback by its path": (["--callbacks.my.module:Class.key=3"], "callbacks", {"my.module:Class": {"key": 3}}),
    "a callback by its path alone": (["--callbacks.my.module:Class={}"], "callbacks", {"my.module:Class": {}}),
    "a callback": (["--callbacks.lr_monitor={}"], "callbacks", {"lr_monitor": {}}),
    "the last one": (["--training.steps=1", "--training.steps=2"], "training.steps", 2),
    "the old tokenizer": (["--model.tokenizer_path=there"], "model.hf_assets_path", "there"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str, read: Any) -> None:
    flags, field, expected = TAKEN[name]
    value = read(*flags, toml="[training]\nsteps = 9\n[model.overrides]\nn_layers = 2\n")
    for part in field.split("."):
        value = getattr(value, part)
    assert value == expected and type(value) is type(expected)


REFUSED: dict[str, tuple[list[str], str]] = {
    "an unknown field": (["--training.stepz=2"], "--training.stepz: there is no such flag. Did you mean '--train"),
    "an unknown table": (["--trainig.steps=2"], "Did you mean '--training.steps'?"),
    "nothing close": (["--zzz"], "--zzz: there is no such flag. `-- --help` lists all."),
    "a whole number": (["--training.steps=2.5"], "--training.steps = '2.5' should be int."),
    "a boolean": (["--compile.enable=maybe"], "--compile.enable = 'maybe' should be true or false."),
    "a choice": (["--activation_checkpoint.mode=ful"], "'full', 'memory_budget', 'none'. Did you mean 'full'?"),
    "no value": (["--training.steps"], "--training.steps needs a value, int."),
    "no value of a free key": (["--optimizer.kwargs.amsgrad"], "amsgrad needs a value, text, or as TOML has it: 3"),
    "no value before a flag": (["--training.steps", "--compile.enable"], "--training.steps needs a value, int."),
    "a stray word": (["--training.steps=2", "3"], "'3' after `--` belongs to no flag"),
    "a table": (["--training.dataloader=2"], "--training.dataloader is a table; its fields have flags: --train"),
    "below a field": (["--training.steps.x=2"], "--training.steps.x: --training.steps is no table."),
    "below a free key": (["--model.overrides.a=1", "--model.overrides.a.b=1"], "a = 1 is no table"),
    "a table for a free one": (["--model.overrides=3"], "--model.overrides = '3' should be a table."),
    "a value of no-": (["--compile.no-enable=true"], "--compile.no-enable=true takes no value"),
    "no- of a number": (["--training.no-steps"], "there is no such flag. Did you mean '--training.steps'?"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, read: Any) -> None:
    flags, said = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        read(*flags)
    assert said in str(error.value)


@pytest.fixture
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_job.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_job", raising=False)
    return "my_job"


def test_a_user_s_own_tables_and_fields(read: Any, own_config: str) -> None:
    """From the TOML or by flag, merged as TorchTitan merges them: fields are added, or replaced, default and all."""
    toml = f'[job]\ncustom_config_module = "{own_config}"\n[encoder]\npath = "there"\n[training]\nseq_len = 8\n'
    job = read("--training.patience=5", "--encoder.sizes=1,2", toml=toml)
    assert (job.training.patience, job.training.steps, job.training.seq_len) == (5, 77, 8)
    assert (job.encoder.path, job.encoder.sizes) == ("there", [1, 2])
    job = read("--encoder.path=x", "--job.custom-config-module", own_config)
    assert (job.encoder.path, job.job.custom_config_module) == ("x", own_config)
    with pytest.raises(ConfigError, match="Did you mean 'encoder'"):
        read(toml=toml.replace("[encoder]", "[encodr]"))


def test_help_lists_a_user_s_own_tables(read: Any, own_config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        read(f"--job.custom_config_module={own_config}", "--help")
    printed = capsys.readouterr().out
    assert not exit_.value.code and "  --encoder.path  str, default 'here'" in printed
    assert "  --training.patience  int, default 3" in printed and "  --training.steps  int, default 77" in printed
