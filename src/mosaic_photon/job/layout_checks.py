"""What a model cannot do in a layout, found before any process group, model or file exists."""

import math
import os
from typing import Any

import torch

from mosaic_photon.compat.cpu_device_type import ON_CPU
from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.job.tables import MosaicJobConfig

V_SCHEDULES = ("zbvzerobubble", "dualpipev")
"""Schedules that give a rank two neighbouring stages."""
SCHEDULES = ("1F1B", "GPipe", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
"""torch's pipeline schedules that can be had by name."""


def sequence_divisor(job: MosaicJobConfig) -> int:
    """What training.seq_len must be a multiple of: TorchTitan's models ask for an even length in every layout."""
    layout = job.parallelism
    takes_odd = job.model.name == "mpt_mup_mosaic" and layout.context_parallel_degree == 1
    return layout.tensor_parallel_degree * layout.context_parallel_degree * (1 if takes_odd else 2)


def check_tensor_parallel(job: MosaicJobConfig, model_args: Any) -> None:
    """Heads are shared out whole; asynchronous tensor parallelism is done by the compiler on an accelerator."""
    tp = job.parallelism.tensor_parallel_degree
    for name in ("n_heads", "n_kv_heads"):
        heads = getattr(model_args, name, None)
        if isinstance(heads, int) and heads % tp:
            good = math.gcd(tp, *(n for n in (model_args.n_heads, getattr(model_args, "n_kv_heads", tp)) if n))
            raise ConfigError(
                f"parallelism.tensor_parallel_degree = {tp} does not divide the model's {name} = {heads}; choose a "
                f"degree that does, e.g. {good}."
            )
    if job.parallelism.enable_async_tensor_parallel and not compiles_model(job):
        raise ConfigError(
            "parallelism.enable_async_tensor_parallel = true needs compile.enable = true with 'model' in "
            "compile.components."
        )


def check_experts(job: MosaicJobConfig, model_args: Any, world_size: int) -> None:
    """Expert parallelism needs experts, and takes its ranks from data, context and tensor parallelism."""
    layout = job.parallelism
    experts, expert_tp, tp = (
        layout.expert_parallel_degree,
        layout.expert_tensor_parallel_degree,
        layout.tensor_parallel_degree,
    )
    if expert_tp not in (1, tp):
        raise ConfigError(
            f"parallelism.expert_tensor_parallel_degree = {expert_tp} must be 1 or tensor_parallel_degree, {tp}."
        )
    if experts == 1:
        return
    if experts < 1:
        raise ConfigError(f"parallelism.expert_parallel_degree = {experts}: must be at least 1.")
    if getattr(model_args, "moe_args", None) is None or not getattr(model_args, "moe_enabled", True):
        raise ConfigError(
            f"parallelism.expert_parallel_degree = {experts}: {job.model.name} {job.model.flavor} has no experts; "
            "it must be 1."
        )
    ranks = world_size // layout.pipeline_parallel_degree // layout.data_parallel_replicate_degree
    if ranks % (experts * expert_tp):
        raise ConfigError(
            f"parallelism.expert_parallel_degree {experts} * expert_tensor_parallel_degree {expert_tp} must divide the "
            f"{ranks} processes of a replica and pipeline stage."
        )


def check_pipeline(job: MosaicJobConfig, model_args: Any) -> None:
    """The schedule must exist, the batch be whole micro-batches, and the layers fill the stages."""
    layout, training = job.parallelism, job.training
    if layout.pipeline_parallel_degree == 1:
        return
    given = layout.pipeline_parallel_schedule
    if not layout.pipeline_parallel_schedule_csv and given.lower() not in [name.lower() for name in SCHEDULES]:
        raise ConfigError(f"parallelism.pipeline_parallel_schedule = {given!r}.{nearest(given, SCHEDULES)}")
    if given.lower() in V_SCHEDULES and ON_CPU and not layout.pipeline_parallel_schedule_csv:
        raise ConfigError(
            f"parallelism.pipeline_parallel_schedule = {given!r} has a rank send to itself, which gloo cannot; it "
            "needs an accelerator."
        )
    if layout.pipeline_parallel_schedule_csv and not os.path.isfile(layout.pipeline_parallel_schedule_csv):
        raise ConfigError(
            f"parallelism.pipeline_parallel_schedule_csv = {layout.pipeline_parallel_schedule_csv!r}: no such file."
        )
    if training.local_batch_size % layout.pipeline_parallel_microbatch_size:
        raise ConfigError(
            f"training.local_batch_size = {training.local_batch_size} must be a multiple of "
            f"parallelism.pipeline_parallel_microbatch_size = {layout.pipeline_parallel_microbatch_size}."
        )
    validation = job.validation
    if validation.enable and (validation.local_batch_size, validation.seq_len) != (
        training.local_batch_size,
        training.seq_len,
    ):
        raise ConfigError(
            "pipeline stages exchange activations of one shape: validation.local_batch_size = "
            f"{validation.local_batch_size} and seq_len = {validation.seq_len} must be training's, "
            f"{training.local_batch_size} and {training.seq_len}."
        )
    if hasattr(model_args, "n_layers") and not layout.module_fqns_per_model_part:
        check_stages(job, model_args.n_layers)


def check_stages(job: MosaicJobConfig, n_layers: int) -> None:
    """TorchTitan's rules for splitting layers into stages, with the settings' names in the message."""
    from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

    from mosaic_photon.titan.layouts import generate_llm_fqn_per_model_part

    layout = job.parallelism
    degree, per_stage = layout.pipeline_parallel_degree, layout.pipeline_parallel_layers_per_stage
    ends = layout.pipeline_parallel_first_stage_less_layers, layout.pipeline_parallel_last_stage_less_layers
    single = issubclass(get_schedule_class(layout.pipeline_parallel_schedule), PipelineScheduleSingle)
    stages = degree * (1 if single else 2)
    if per_stage is not None:
        stages = math.ceil((n_layers + sum(ends)) / per_stage)
        fits = stages == degree if single else stages % degree == 0 and stages >= 2 * degree
        if not fits:
            wanted = "one" if single else "at least two"
            raise ConfigError(
                f"parallelism.pipeline_parallel_layers_per_stage = {per_stage} makes {stages} stages of {n_layers} "
                f"layers; {layout.pipeline_parallel_schedule} needs {wanted} on each of {degree} pipeline ranks."
            )
    try:
        generate_llm_fqn_per_model_part(stages, n_layers, *ends)
    except ValueError as error:
        raise ConfigError(
            f"parallelism.pipeline_parallel_degree = {degree} with {layout.pipeline_parallel_schedule} makes {stages} "
            f"stages, too many for a model of {n_layers} layers: {error}"
        ) from None
    if not layout.pipeline_parallel_schedule_csv:
        check_microbatches(job, stages)


def check_microbatches(job: MosaicJobConfig, stages: int) -> None:
    """torch's rules on the number of micro-batches of a schedule."""
    from torch.distributed.pipelining import schedules

    layout, training = job.parallelism, job.training
    schedule = schedules.get_schedule_class(layout.pipeline_parallel_schedule)
    micro = training.local_batch_size // layout.pipeline_parallel_microbatch_size
    where = (
        f"training.local_batch_size {training.local_batch_size} / pipeline_parallel_microbatch_size "
        f"{layout.pipeline_parallel_microbatch_size} makes {micro} micro-batch{'es' if micro > 1 else ''};"
        f" {layout.pipeline_parallel_schedule}"
    )
    if issubclass(schedule, schedules.Schedule1F1B | schedules.ScheduleDualPipeV) and micro < stages:
        raise ConfigError(f"{where} needs at least as many as there are stages, {stages}.")
    rounds = max(1, micro // layout.pipeline_parallel_degree)
    in_rounds = schedules.ScheduleInterleaved1F1B | schedules.ScheduleInterleavedZeroBubble
    if issubclass(schedule, in_rounds) and micro % rounds:
        raise ConfigError(f"{where} needs a multiple of {rounds}, the rounds of {layout.pipeline_parallel_degree}.")


def check_activation_checkpoint(job: MosaicJobConfig) -> None:
    """A memory budget is kept by the compiler; a selective option is "op" or every how many blocks."""
    table = job.activation_checkpoint
    if table.mode == "memory_budget" and not compiles_model(job):
        raise ConfigError(
            'activation_checkpoint.mode = "memory_budget" needs compile.enable = true with "model" in '
            "compile.components."
        )
    option = table.selective_ac_option
    if table.mode != "none" and table.determinism_check not in ("default", "none"):
        raise ConfigError(
            f"activation_checkpoint.determinism_check = {table.determinism_check!r} must be 'default' or 'none'."
        )
    if table.mode == "selective" and option != "op" and not (option.isdigit() and int(option) > 0):
        raise ConfigError(
            f"activation_checkpoint.selective_ac_option = {option!r} must be 'op' or a positive number, as a string: "
            "every how many blocks one is checkpointed."
        )


def check_devices() -> None:
    """Each process of this machine needs an accelerator of its own."""
    local, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.accelerator.device_count()
    if local > devices:
        raise ConfigError(
            f"{local} processes on this machine (LOCAL_WORLD_SIZE; torchrun's nproc_per_node), but it has {devices} "
            f"accelerator{'s' if devices != 1 else ''}."
        )


def compiles_model(job: MosaicJobConfig) -> bool:
    return job.compile.enable and "model" in job.compile.components
