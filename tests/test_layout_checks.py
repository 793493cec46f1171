"""What cannot work in a layout says so before the first step."""

from pathlib import Path

import pytest

import jobs
from mosaic_photon.checks import check_job
from mosaic_photon.errors import ConfigError
from mosaic_photon.job_loading import load_job
from mosaic_photon.train_spec import register_for_job

P = "--parallelism."
PP, TP, EP = f"{P}pipeline_parallel_degree=", f"{P}tensor_parallel_degree=", f"{P}expert_parallel_degree="
REPLICATE, SHARD = f"{P}data_parallel_replicate_degree=", f"{P}data_parallel_shard_degree="
VALIDATE = "--validation.enable"

REFUSED: dict[str, tuple[int, list[str], str]] = {
    # name: (processes, flags, what the message must say)
    "too few processes": (2, [f"{TP}4"], "the job has 2 processes"),
    "DDP and TP": (4, [f"{REPLICATE}2", f"{TP}2"], "is DDP, which TorchTitan cannot combine"),
    "DDP and PP": (4, [f"{REPLICATE}2", f"{PP}2"], "is DDP, which TorchTitan cannot combine"),
    "batch of two ranks": (2, ["--training.global_batch_size=6"], "local_batch_size 2 * data-parallel degree 2, 4"),
    "CP on a CPU": (2, [f"{P}context_parallel_degree=2"], "context_parallel_degree = 2 needs an accelerator"),
    "pinned checkpoints": (1, ["--checkpoint.async_mode=async_with_pinned_mem"], 'it must be "async"'),
    "CPU offload": (1, ["--training.enable_cpu_offload"], "enable_cpu_offload = True needs an accelerator"),
    "memory snapshot": (1, ["--profiling.enable_memory_snapshot"], "needs an accelerator"),
    "float8": (1, ["--model.converters=quantize.linear.float8"], "model.converters"),
    "async TP": (2, [f"{TP}2", f"{P}enable_async_tensor_parallel"], "needs an accelerator"),
    "TorchFT": (1, ["--fault_tolerance.enable"], "fault_tolerance.enable = True"),
    "heads": (3, [f"{TP}3", "--training.seq_len=63"], "does not divide the model's n_heads = 4"),
    "sequence": (2, [f"{TP}2", "--training.seq_len=63"], "seq_len = 63 must be a multiple of 2"),
    "no experts": (2, [f"{EP}2"], "llama3_mosaic debugmodel has no experts"),
    "schedule": (2, [f"{PP}2", f"{P}pipeline_parallel_schedule=1F2B"], "Did you mean '1F1B'?"),
    "micro-batches": (2, [f"{PP}2", f"{P}pipeline_parallel_microbatch_size=4"], "must be a multiple of"),
    "stages": (2, [f"{PP}2", f"{P}pipeline_parallel_layers_per_stage=1"], "makes 4 stages of 2 layers; 1F1B needs one"),
    "too many stages": (8, [f"{PP}8", "--training.local_batch_size=4"], "too many for a model of 2 layers"),
    "validation's shape": (2, [f"{PP}2", VALIDATE, "--validation.seq_len=32"], "must be training's, 2 and 64"),
    "memory budget": (1, ["--activation_checkpoint.mode=memory_budget"], "needs compile.enable"),
    "selective option": (
        1,
        ["--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=some"],
        "must be 'op' or a positive number",
    ),
}
ACCEPTED: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "FSDP2": (2, []),
    "DDP": (2, [f"{REPLICATE}2", f"{SHARD}1"]),
    "HSDP and TP": (8, [f"{REPLICATE}2", f"{SHARD}2", f"{TP}2", "--training.global_batch_size=8"]),
    "PP with validation": (2, [f"{PP}2", VALIDATE]),
    "interleaved PP": (2, [f"{PP}2", f"{P}pipeline_parallel_schedule=interleaved1f1b"]),
    "PP of one layer a stage": (4, [f"{PP}4"]),
    "compiled memory budget": (1, ["--activation_checkpoint.mode=memory_budget", "--compile.enable"]),
    "every other block": (
        1,
        ["--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=2"],
    ),
}


def check(folder: Path, processes: int, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    _, config, _, data = jobs.write_job(folder, folder)
    loaded = load_job(config, data, flags)
    check_job(loaded, register_for_job(loaded))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_built(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes, flags, expected = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        check(tmp_path, processes, flags, monkeypatch)
    assert expected in str(error.value)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path, *ACCEPTED[name], monkeypatch)
