"""What cannot work in a layout says so before the first step."""

from importlib import import_module
from pathlib import Path

import pytest

import jobs
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.layout_checks import data_parallel_degree
from mosaic_photon.job.load import load_job
from mosaic_photon.titan.layouts import parallel_dims
from mosaic_photon.titan.releases import installed
from mosaic_photon.train_spec import check_job, spec_of_job

P = "--parallelism."
PP, TP, EP = f"{P}pipeline_parallel_degree=", f"{P}tensor_parallel_degree=", f"{P}expert_parallel_degree="
REPLICATE, SHARD = f"{P}data_parallel_replicate_degree=", f"{P}data_parallel_shard_degree="
VALIDATE = "--validation.enable"

Refused = dict[str, tuple[int, list[str], str]]
"""By name: processes, flags, what the message must say."""
REFUSED: Refused = {
    "too few processes": (2, [f"{TP}4"], "the job has 2 processes"),
    "batch of two ranks": (2, ["--training.global_batch_size=6"], "local_batch_size 2 * data-parallel degree 2, 4"),
    "pinned checkpoints": (1, ["--checkpoint.async_mode=async_with_pinned_mem"], 'it must be "async"'),
    "CPU offload": (1, ["--training.enable_cpu_offload"], "enable_cpu_offload = True needs an accelerator"),
    "memory snapshot": (1, ["--profiling.enable_memory_snapshot"], "needs an accelerator"),
    "float8": (1, ["--model.converters=quantize.linear.float8"], "model.converters"),
    "async TP": (2, [f"{TP}2", f"{P}enable_async_tensor_parallel"], "needs an accelerator"),
    "TorchFT": (1, ["--fault_tolerance.enable"], "fault_tolerance.enable = True"),
    "heads": (3, [f"{TP}3", "--training.seq_len=66"], "does not divide the model's n_heads = 4"),
    "sequence": (2, [f"{TP}2", "--training.seq_len=63"], "seq_len = 63 must be a multiple of 4"),
    "odd sequence": (1, ["--training.seq_len=63"], "seq_len = 63 must be a multiple of 2"),
    "validation's sequence": (1, [VALIDATE, "--validation.seq_len=66"], "the model's positions end at 64"),
    "validation's shards": (2, [f"{TP}2", VALIDATE, "--validation.seq_len=63"], "must be a multiple of 2"),
    "experts' shards": (1, [f"{P}expert_tensor_parallel_degree=2"], "must be 1 or tensor_parallel_degree, 1"),
    "no experts": (2, [f"{EP}2"], "llama3_mosaic debugmodel has no experts"),
    "schedule": (2, [f"{PP}2", f"{P}pipeline_parallel_schedule=1F2B"], "Did you mean '1F1B'?"),
    "micro-batches": (2, [f"{PP}2", f"{P}pipeline_parallel_microbatch_size=4"], "must be a multiple of"),
    "stages": (2, [f"{PP}2", f"{P}pipeline_parallel_layers_per_stage=1"], "makes 4 stages of 2 layers; 1F1B needs one"),
    "too many stages": (8, [f"{PP}8", "--training.local_batch_size=4"], "too many for a model of 2 layers"),
    "validation's shape": (2, [f"{PP}2", VALIDATE, "--validation.seq_len=32"], "must be training's, 2 and 64"),
    "a micro-batch a stage": (2, [f"{PP}2", "--training.local_batch_size=1"], "1F1B needs at least as many as there"),
    "stage on both sides": (2, [f"{PP}2", f"{P}pipeline_parallel_schedule=ZBVZeroBubble"], "which gloo cannot"),
    "schedule's file": (2, [f"{PP}2", f"{P}pipeline_parallel_schedule_csv=none.csv"], "'none.csv': no such file"),
    "empty micro-batch": (2, [f"{PP}2", f"{P}pipeline_parallel_microbatch_size=0"], "must be at least 1"),
    "a monitor of parts": (
        2,
        [f"{TP}2", "--callbacks.activation_monitor.interval=10ba"],
        "callbacks.activation_monitor is refused: under parallelism.tensor_parallel_degree > 1",
    ),
    "memory budget": (1, ["--activation_checkpoint.mode=memory_budget"], "needs compile.enable"),
}
CP = f"{P}context_parallel_degree=2"
SELECTIVE = ["--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=some"]
ON: dict[str, Refused] = {
    "v02": {
        "DDP and TP": (4, [f"{REPLICATE}2", f"{TP}2"], "is DDP, which TorchTitan 0.2.2 cannot combine"),
        "DDP and PP": (4, [f"{REPLICATE}2", f"{PP}2"], "is DDP, which TorchTitan 0.2.2 cannot combine"),
        "CP on a CPU": (2, [CP], "context_parallel_degree = 2 needs an accelerator"),
        "selective option": (1, SELECTIVE, "must be 'op' or a positive number"),
    },
    "v03": {
        "CP in blocks": (2, [CP], "training.seq_len = 64 must be a multiple of 256: TorchTitan 0.3 shares it out in"),
        "CP in blocks of validation": (
            2,
            [CP, "--training.seq_len=256", VALIDATE],
            "validation.seq_len = 64 must be a multiple of 256",
        ),
        "selective option": (1, SELECTIVE, "TorchTitan 0.3.0 has no such setting"),
    },
}
"""What one release cannot do."""
REFUSED |= ON[installed().folder]
VALUES: dict[str, tuple[list[str], str]] = {
    "--training.steps=0": ([], "training.steps = 0: must be at least 1"),
    "--training.global_batch_size=0": ([], "at least 1, or -1"),
    "--training.gc_freq=0": ([], "training.gc_freq = 0"),
    "--training.local_batch_size=100000000": (["--training.global_batch_size=-1"], "more than a micro-batch can hold"),
    "--validation.local_batch_size=100000000": (["--validation.enable"], "validation.local_batch_size = 100000000"),
    "--job.save_config_file=../": ([], "is a folder, not a file"),
    "--debug.seed=99999999999999999999": ([], "must be a number of 64 bits"),
    "--comm.init_timeout_seconds=0": ([], "comm.init_timeout_seconds = 0: must be at least 1"),
    "--activation_checkpoint.determinism_check=some": (
        ["--activation_checkpoint.mode=full"],
        "must be 'default' or 'none'",
    ),
    "--training.max_norm=0": ([], "training.max_norm = 0.0: must be above 0"),
    "--training.max_norm=-1": ([], "training.max_norm = -1.0: must be above 0"),
    "--training.max_norm=nan": ([], "training.max_norm = nan: must be above 0"),
    "--experimental.custom_args_module=somewhere": ([], "job.custom_config_module is right"),
    "--job.dump_folder=~/out": ([], "job.dump_folder = '~/out': '~' and '$' are a shell's"),
    "--job.dump_folder=/data/$USER/out": ([], "job.dump_folder = '/data/$USER/out'"),
    "--job.dump_folder=s3://bucket/out": ([], "must be a folder of a file system"),
    "--validation.freq=0": ([], "validation.freq = 0"),
    "--validation.steps=-2": ([], "validation.steps = -2: must be at least 1, or -1"),
    "--validation.local_batch_size=0": ([], "validation.local_batch_size = 0"),
    "--metrics.log_freq=0": ([], "metrics.log_freq = 0"),
    "--checkpoint.interval=0": ([], "checkpoint.interval = 0"),
    "--checkpoint.keep_latest_k=-1": ([], "keep_latest_k = -1: must be at least 0"),
    "--profiling.profiler_active=0": ([], "profiler_active = 0: must be at least 1"),
    "--comm.train_timeout_seconds=0": ([], "train_timeout_seconds = 0: must be at least 1"),
    "--checkpoint.load_step=7": (["--checkpoint.enable"], "there is no such checkpoint in"),
    "--checkpoint.initial_load_path=/none": (["--checkpoint.enable"], "'/none': there is no such folder"),
    "--checkpoint.last_save_in_hf": (
        ["--checkpoint.enable", "--checkpoint.no-last_save_model_only"],
        "needs last_save_model_only = true",
    ),
    "--compile.backend=inducter": (["--compile.enable"], "Did you mean 'inductor'?"),
    "--experimental.custom_import=no.such.module": ([], "'no.such.module': No module named 'no'"),
    "--profiling.profile_freq=2": (["--profiling.enable_profiling"], "profiler_warmup 3 + profiler_active 1"),
}
OVERRIDES: dict[str, str] = {
    "n_layers = 'two'": "model.overrides.n_layers = 'two' should be int",
    "n_layers = -1": "model.overrides.n_layers = -1: must be at least 1",
    "dim = 1048576": "its weights and gradients take",
    "dim = 66": "dim = 66 must be a multiple of its n_heads = 4",
    "dim = 68": "dim / n_heads = 17 must be even",
    "norm_eps = nan": "model.overrides.norm_eps = nan: must be a finite number",
    "attn_type = 'bogus'": {
        "v02": "cannot be built as the job has it: Unknown attention type: bogus.",
        "v03": "attn_type = 'bogus': TorchTitan 0.3 has",
    }[installed().folder],
    "n_kv_heads = 3": "n_heads = 4 must be a multiple of its n_kv_heads = 3",
}
ACCEPTED: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "FSDP2": (2, []),
    "DDP": (2, [f"{REPLICATE}2", f"{SHARD}1"]),
    "HSDP and TP": (8, [f"{REPLICATE}2", f"{SHARD}2", f"{TP}2", "--training.global_batch_size=8"]),
    "PP with validation": (2, [f"{PP}2", VALIDATE]),
    "interleaved PP": (2, [f"{PP}2", f"{P}pipeline_parallel_schedule=interleaved1f1b"]),
    "PP of one layer a stage": (4, [f"{PP}4", "--training.local_batch_size=4"]),
    "compiled memory budget": (1, ["--activation_checkpoint.mode=memory_budget", "--compile.enable"]),
    "every other block": (
        1,
        ["--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=2"],
    ),
}


def check(folder: Path, processes: int, flags: list[str], monkeypatch: pytest.MonkeyPatch, job: str = jobs.JOB) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    _, config, _, data = jobs.write_job(folder, folder, job)
    loaded = load_job(config, data, flags)
    check_job(loaded, spec_of_job(loaded))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_built(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes, flags, expected = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        check(tmp_path, processes, flags, monkeypatch)
    assert expected in str(error.value)


@pytest.mark.parametrize("flag", VALUES)
def test_values_that_no_run_can_use(flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others, expected = VALUES[flag]
    with pytest.raises(ConfigError) as error:
        check(tmp_path, 1, [flag, *others], monkeypatch)
    assert expected in str(error.value)


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides_that_no_model_can_have(override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = "\n".join(line for line in jobs.JOB.splitlines() if not line.startswith(override.split()[0]))
    job = kept.replace("[model.overrides]", f"[model.overrides]\n{override}")
    with pytest.raises(ConfigError) as error:
        check(tmp_path, 1, [], monkeypatch, job)
    assert OVERRIDES[override] in str(error.value)


@pytest.mark.skipif(installed().folder == "v02", reason="0.2.2 has none on a CPU")
def test_another_model_s_attention_is_not_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.JOB.replace("llama3_mosaic", "mpt_mup_mosaic").replace("dim = 64", "d_model = 64")
    with pytest.raises(ConfigError, match=r"TorchTitan 0\.3 cannot split the attention of mpt_mup_mosaic; set it to 1"):
        check(tmp_path, 2, [CP, "--training.seq_len=256"], monkeypatch, job)


def test_replication_with_context_parallelism_is_hsdp(tmp_path: Path) -> None:
    """TorchTitan shards the weights over the context-parallel ranks, so it is no DDP."""
    _, config, _, data = jobs.write_job(tmp_path, tmp_path)
    job = load_job(config, data, [f"{REPLICATE}2", f"{SHARD}1", CP])
    assert data_parallel_degree(job, 4) == 2
    assert parallel_dims(job, 4).fsdp_enabled
    if installed().folder == "v02":
        check_degrees = import_module("mosaic_photon.titan.v02.layouts").check_degrees
        check_degrees(job, 4, on_cpu=False)
        with pytest.raises(ConfigError, match="is DDP"):
            check_degrees(load_job(config, data, [f"{REPLICATE}2", f"{TP}2"]), 4, on_cpu=False)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path, *ACCEPTED[name], monkeypatch)
