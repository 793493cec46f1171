"""TorchTitan 0.2.2's own train configs, as its source has them: each trains here, or a message says why not.

The wheel ships none; the tables below have their keys and kinds of values. What a user changes is what the tests
change: the model's name, paths, and sizes for this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import jobs
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.load import load_job
from mosaic_photon.train_spec import check_job, spec_of_job

TABLES = """
[job]
dump_folder = "{out}"
description = "{description}"
print_config = false
{job}

[profiling]
enable_profiling = {profile}
save_traces_folder = "profile_trace"
profile_freq = 100
enable_memory_snapshot = false
save_memory_snapshot_folder = "memory_snapshot"

[metrics]
log_freq = {log_freq}
disable_color_printing = true
enable_tensorboard = {tensorboard}
save_tb_folder = "tb"
enable_wandb = false

[model]
name = "{name}"
flavor = "{flavor}"
hf_assets_path = "{tokenizer}"
# converters = ["quantize.linear.float8"]
{overrides}

[optimizer]
name = "AdamW"
lr = {lr}
eps = {eps}

[lr_scheduler]
warmup_steps = {warmup}
{schedule}

[training]
local_batch_size = {batch}
seq_len = {seq_len}
max_norm = 1.0
steps = {steps}
dataset = "c4_test"

[parallelism]
data_parallel_replicate_degree = 1
data_parallel_shard_degree = -1
fsdp_reshard_after_forward = "default"
tensor_parallel_degree = {tp}
enable_async_tensor_parallel = {async_tp}
pipeline_parallel_degree = 1
pipeline_parallel_schedule = "{pp_schedule}"
context_parallel_degree = 1
expert_parallel_degree = {ep}
expert_tensor_parallel_degree = {etp}

[checkpoint]
enable = {checkpoint}
folder = "checkpoint"
interval = 10
last_save_model_only = {model_only}
export_dtype = "{export}"
async_mode = "disabled"

[activation_checkpoint]
mode = "{ac}"
selective_ac_option = "{ac_option}"

[compile]
enable = {compile}
components = [{components}]

[quantize.linear.float8]
enable_fsdp_float8_all_gather = false
precompute_float8_dynamic_scale_for_fsdp = false
filter_fqns = ["output"]
{more}
"""
DEFAULTS = {
    "profile": "false", "log_freq": "1", "tensorboard": "false", "lr": "7e-4", "eps": "1e-8", "warmup": "3",
    "schedule": "", "batch": "6", "seq_len": "1024", "steps": "12", "tp": "1", "async_tp": "false",
    "pp_schedule": "1F1B", "ep": "1", "etp": "1", "checkpoint": "false", "model_only": "false", "export": "float32",
    "ac": "selective", "ac_option": "op", "compile": "false", "components": '"model", "loss"', "more": "", "job": "",
}  # fmt: skip
DECAY = 'decay_ratio = 0.7\ndecay_type = "linear"\nmin_lr_factor = 0.1'
COSINE = DECAY.replace("linear", "cosine")
EXPERTS = '[quantize.grouped_mm.float8]\nfqns = ["experts"]'
VALIDATION = '[validation]\nenable = false\ndataset = "c4_validation"\nfreq = 5\nsteps = 9'
IMAGES = 'custom_config_module = "torchtitan.models.flux.job_config"'
ENCODER = '[encoder]\nt5_encoder = "some/t5"\nclip_encoder = "some/clip"\nmax_t5_encoding_len = 128'
DEBUG = "[debug]\nseed = 31\ndeterministic = false\nmoe_force_load_balance = false"
SMALL = {
    "llama3": "dim = 64\nn_layers = 2\nn_heads = 4\nn_kv_heads = 2\nvocab_size = 2048",
    "llama4": "dim = 64\nn_layers = 2\nn_heads = 4\nn_kv_heads = 2\nvocab_size = 2048\nmoe_args = { num_experts = 4 }",
    "deepseek_v3": "dim = 64\ninter_dim = 96\nmoe_inter_dim = 48\nn_layers = 2\nn_heads = 4\nvocab_size = 2048\n"
    "q_lora_rank = 0\nkv_lora_rank = 16\nqk_nope_head_dim = 16\nqk_rope_head_dim = 8\nv_head_dim = 16\n"
    "moe_args = { num_experts = 4, top_k = 2, num_expert_groups = 2, num_limited_groups = 1 }",
    "qwen3": "dim = 64\nhead_dim = 16\nn_layers = 2\nn_heads = 4\nn_kv_heads = 2\nhidden_dim = 96\nvocab_size = 2048\n"
    "moe_inter_dim = 48\nmoe_args = { num_experts = 4, top_k = 2 }",
    "gpt_oss": "dim = 64\nhead_dim = 16\nn_layers = 2\nn_heads = 4\nn_kv_heads = 2\nvocab_size = 2048\n"
    "moe_inter_dim = 48\nmoe_args = { num_experts = 4, top_k = 2 }",
}
CONFIGS: dict[str, dict[str, str]] = {
    "llama3 debug_model": {"flavor": "debugmodel", "schedule": DECAY, "ac_option": "2", "more": VALIDATION},
    "llama3 8b": {"flavor": "8B", "profile": "true", "tensorboard": "true", "more": VALIDATION},
    "llama3 8b_varlen": {"flavor": "8B_varlen", "profile": "true", "model_only": "true", "more": DEBUG},
    "llama3 70b": {"flavor": "70B", "tp": "8", "async_tp": "true", "ac": "full"},
    "llama3 405b": {"flavor": "405B", "tp": "8", "async_tp": "true", "ac": "full", "compile": "true"},
    "llama4 debug_model": {"flavor": "debugmodel", "lr": "4e-3", "eps": "1e-15", "more": EXPERTS},
    "llama4 17bx16e": {"flavor": "17bx16e", "tp": "8", "etp": "8", "ac": "full", "more": DEBUG},
    "llama4 17bx128e": {"flavor": "17bx128e", "tp": "8", "pp_schedule": "Interleaved1F1B", "ac": "full"},
    "deepseek_v3 debug_model": {"flavor": "debugmodel", "ac_option": "2", "schedule": DECAY, "more": EXPERTS},
    "deepseek_v3 16b": {"flavor": "16B", "pp_schedule": "Interleaved1F1B", "ep": "8", "schedule": COSINE},
    "deepseek_v3 671b": {"flavor": "671B", "schedule": COSINE, "compile": "true", "components": '"loss"'},
    "qwen3 0.6b": {"flavor": "0.6B", "export": "float16"},
    "qwen3 1.7b": {"flavor": "1.7B", "export": "float16", "ac": "full"},
    "qwen3 32b": {"flavor": "32B", "batch": "2", "ac": "full"},
    "qwen3 moe_debug": {"flavor": "debugmodel_moe", "export": "float16"},
    "gpt_oss debug_model": {
        "flavor": "debugmodel",
        "ac": "none",
        "ac_option": "2",
        "more": VALIDATION + "\n" + EXPERTS,
    },
    "flux debug_model": {"flavor": "flux-debug", "job": IMAGES, "more": ENCODER},
    "flux dev": {"flavor": "flux-dev", "job": IMAGES, "more": ENCODER},
    "flux schnell": {"flavor": "flux-schnell", "job": IMAGES, "more": ENCODER},
}
ONE_PROCESS = {"tp": "1", "async_tp": "false", "ep": "1", "etp": "1", "compile": "false"}
FOR_CPU = {"batch": "2", "seq_len": "64", "steps": "2", "profile": "false"}
REFUSED = {
    "flux": "'flux_mosaic' is no language model",
    "llama3 8b_varlen": "attn_type = 'varlen', which needs an accelerator",
}


def write(folder: Path, data: Path, config: str, **changes: str) -> list[str]:
    """The config as a user has it who changed the model's name and the paths, and what `changes` say."""
    model = config.split()[0]
    values = {"name": f"{model}_mosaic", "description": config, "overrides": ""}
    text = TABLES
    for key, value in (DEFAULTS | CONFIGS[config] | values | changes).items():
        text = text.replace(f"{{{key}}}", value)
    return jobs.write_job(folder, data, text.replace("{ ", "{{ ").replace(" }", " }}"))


def small(config: str) -> dict[str, str]:
    return {"overrides": "[model.overrides]\n" + SMALL.get(config.split()[0], "")}


@pytest.mark.parametrize("config", CONFIGS)
def test_each_trains_two_steps_or_says_why_not(
    config: str, tmp_path: Path, prepared_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = write(tmp_path, prepared_data, config, **ONE_PROCESS, **FOR_CPU, **small(config))
    code = jobs.run_here(arguments)
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed
    why = next((text for kind, text in REFUSED.items() if config.startswith(kind)), None)
    if why is None:
        assert code == 0 and "Training completed" in printed, printed
    else:
        assert code == 1 and why in printed, printed


@pytest.mark.parametrize("config", [name for name, changes in CONFIGS.items() if {"tp", "ep"} & changes.keys()])
def test_sizes_for_many_devices_are_refused_on_one(
    config: str, tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, but for name and paths."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    _, job, _, data = write(tmp_path, prepared_data, config)
    loaded = load_job(job, data, [])
    with pytest.raises(ConfigError, match=r"processes? of|the job has 1 process"):
        check_job(loaded, spec_of_job(loaded))


def test_overrides_merge_into_the_dataclasses_of_model_args(tmp_path: Path, prepared_data: Path) -> None:
    args = args_with(tmp_path, prepared_data, "qwen3 moe_debug", "moe_args = { top_k = 3, load_balance_coeff = 0 }")
    assert (args.moe_args.top_k, args.moe_args.load_balance_coeff) == (3, 0)
    assert args.moe_args.num_experts == 64 and args.moe_args.score_func == "softmax"  # the flavor's own
    args = args_with(tmp_path, prepared_data, "llama3 debug_model", "rope_scaling_args = { scaling_factor = 4.0 }")
    assert (args.rope_scaling_args.scaling_factor, args.rope_scaling_args.original_max_position_embeddings) == (
        4.0,
        8192,
    )
    args = args_with(tmp_path, prepared_data, "llama4 debug_model", "rope_scaling_args = { scaling_factor = 4.0 }")
    assert (args.rope_scaling_args.scaling_factor, args.rope_scaling_args.original_max_position_embeddings) == (
        4.0,
        8192,
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            "moe_args = { topk = 2 }",
            "model.overrides.moe_args.topk: the fields of moe_args have no such field. Did you",
        ),
        ("moe_args = { top_k = 'two' }", "model.overrides.moe_args.top_k = 'two' should be int"),
        ("moe_args = { num_experts = 0 }", "model.overrides.moe_args.num_experts = 0: must be at least 1"),
        ("moe_args = 8", "model.overrides.moe_args = 8 should be a table"),
        ("moe_arg = 1", "model.overrides.moe_arg: the model args of qwen3_mosaic have no such field. Did you mean"),
    ],
)
def test_nested_overrides_are_checked_as_the_others(
    overrides: str, said: str, tmp_path: Path, prepared_data: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        args_with(tmp_path, prepared_data, "qwen3 moe_debug", overrides)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("top_k = 5", "moe_args.top_k = 5: there are 4 experts"),
        ("num_expert_groups = 3, num_limited_groups = 1", "num_expert_groups = 3 must divide its num_experts = 4"),
        ("num_expert_groups = 4, num_limited_groups = 1", "into groups of at least 2"),
        ("num_expert_groups = 2", "num_limited_groups = None must be one of 1 to 2"),
        ("num_expert_groups = 2, num_limited_groups = 1, top_k = 3", "1 of 2 groups have 2 experts"),
        ("load_balance_coeff = -1.0", "cannot be built as the job has it"),
    ],
)
def test_experts_that_cannot_be_chosen(
    overrides: str, said: str, tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    sizes = "n_layers = 2\nn_kv_heads = 8\nvocab_size = 2048\n"
    table = f"[model.overrides]\n{sizes}moe_args = {{ num_experts = 4, top_k = 2, {overrides} }}"
    table = table.replace("top_k = 2, ", "") if "top_k" in overrides else table
    _, job, _, data = write(tmp_path, prepared_data, "qwen3 moe_debug", overrides=table, **FOR_CPU)
    loaded = load_job(job, data, [])
    with pytest.raises(ConfigError) as raised:
        check_job(loaded, spec_of_job(loaded))
    assert said in str(raised.value)


def test_plain_tables_of_model_args_are_replaced(tmp_path: Path, prepared_data: Path) -> None:
    """As docs/mpt.md says of attn_config: an MPT's tables are dicts, and llm-foundry fills in what is not given."""
    values = {"name": "mpt_mup_mosaic", "flavor": "debugmodel"}
    base = "attn_config = { rope = true, clip_qkv = 5.0 }"
    args = args_with(tmp_path, prepared_data, "llama3 debug_model", base, **values)
    assert (args.attn_config["rope"], args.attn_config["clip_qkv"], args.attn_config["qk_ln"]) == (True, 5.0, False)
    args = args_with(tmp_path / "b", prepared_data, "llama3 debug_model", "attn_config = { alibi = true }", **values)
    assert (args.attn_config["alibi"], args.attn_config["rope"], args.attn_config["clip_qkv"]) == (True, False, None)


def args_with(folder: Path, data: Path, config: str, overrides: str, **changes: str) -> Any:
    _, job, _, data_path = write(folder, data, config, overrides=f"[model.overrides]\n{overrides}", **changes)
    loaded = load_job(job, data_path, [])
    return spec_of_job(loaded).model_args[loaded.model.flavor]
