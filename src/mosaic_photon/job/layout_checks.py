"""What a model cannot do in a layout, found before any process group, model or file exists."""

import importlib.util
import math
import os
from collections.abc import Mapping
from math import prod
from typing import Any

from torch import nn

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import ActivationCheckpoint, MosaicJobConfig

V_SCHEDULES = ("zbvzerobubble", "dualpipev")
"""Schedules that give a rank two neighbouring stages."""
SCHEDULES = ("1F1B", "GPipe", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
"""torch's pipeline schedules that can be had by name."""
DEEPEP_MODELS = ("llama4_mosaic", "deepseek_v3_mosaic")
"""Those whose experts TorchTitan lets exchange tokens by DeepEP."""


def check_layout(job: MosaicJobConfig, facts: Facts) -> None:
    """The parallel degrees must multiply to the number of processes."""
    data_parallel_degree(job, facts.world_size)


def data_parallel_degree(job: MosaicJobConfig, world_size: int) -> int:
    """Into how many parts a global batch is shared out: the degrees of replication and of sharding, multiplied.

    Raises:
        ConfigError: the degrees don't multiply to the number of processes.
    """
    layout = job.parallelism
    degrees = {
        "data_parallel_replicate_degree": layout.data_parallel_replicate_degree,
        "context_parallel_degree": layout.context_parallel_degree,
        "tensor_parallel_degree": layout.tensor_parallel_degree,
        "pipeline_parallel_degree": layout.pipeline_parallel_degree,
    }
    for name, degree in degrees.items():
        if degree < 1:
            raise ConfigError(f"parallelism.{name} = {degree}: must be at least 1.")
    others = prod(degrees.values())
    shard = layout.data_parallel_shard_degree
    if shard == -1:
        shard = max(1, world_size // others)
    if shard * others != world_size:
        product = " * ".join(f"{name} {degree}" for name, degree in degrees.items())
        raise ConfigError(
            f"parallelism: data_parallel_shard_degree {shard} * {product} = {shard * others}, but the job has "
            f"{world_size} process{'es' if world_size > 1 else ''} (WORLD_SIZE; torchrun's nnodes * nproc_per_node)."
        )
    return layout.data_parallel_replicate_degree * shard


def sequence_divisor(job: MosaicJobConfig) -> int:
    """What training.seq_len must be a multiple of: TorchTitan's models ask for an even length in every layout."""
    layout = job.parallelism
    takes_odd = job.model.name == "mpt_mup_mosaic" and layout.context_parallel_degree == 1
    return layout.tensor_parallel_degree * layout.context_parallel_degree * (1 if takes_odd else 2)


def check_sequences(job: MosaicJobConfig, facts: Facts | None = None) -> None:
    """A sequence must be whole shards of tensor and context parallelism."""
    training, layout = job.training, job.parallelism
    divisor = sequence_divisor(job)
    if training.seq_len % divisor:
        raise ConfigError(
            f"training.seq_len = {training.seq_len} must be a multiple of {divisor} "
            f"(tensor_parallel_degree {layout.tensor_parallel_degree} * 2 * context_parallel_degree "
            f"{layout.context_parallel_degree}), e.g. {max(1, training.seq_len // divisor) * divisor}."
        )
    shards = layout.tensor_parallel_degree * layout.context_parallel_degree
    divisor = 2 * shards if layout.context_parallel_degree > 1 else shards
    if job.validation.enable and job.validation.seq_len % divisor:
        raise ConfigError(
            f"validation.seq_len = {job.validation.seq_len} must be a multiple of {divisor}, the layout's shards of a "
            f"sequence, e.g. {max(1, job.validation.seq_len // divisor) * divisor}."
        )


def check_can_be_split(job: MosaicJobConfig, facts: Facts) -> None:
    """Pipeline parallelism needs a model that TorchTitan can split."""
    degree = job.parallelism.pipeline_parallel_degree
    if degree > 1 and facts.spec.pipelining_fn is None:
        raise ConfigError(
            f"parallelism.pipeline_parallel_degree = {degree}: TorchTitan cannot split {job.model.name} into pipeline "
            "stages; it must be 1."
        )


def check_heads(tensor_parallel: int, heads: Mapping[str, int]) -> None:
    """Heads are shared out whole. `heads`: the model's counts of them, by name."""
    for name, count in heads.items():
        if count % tensor_parallel:
            good = math.gcd(tensor_parallel, *heads.values())
            raise ConfigError(
                f"parallelism.tensor_parallel_degree = {tensor_parallel} does not divide the model's {name} = {count}; "
                f"choose a degree that does, e.g. {good}."
            )


def check_tensor_parallel(job: MosaicJobConfig, facts: Facts) -> None:
    """Asynchronous tensor parallelism is done by the compiler on an accelerator."""
    heads = {name: getattr(facts.model_args, name, None) for name in ("n_heads", "n_kv_heads")}
    check_heads(
        job.parallelism.tensor_parallel_degree, {name: count for name, count in heads.items() if isinstance(count, int)}
    )
    if job.parallelism.enable_async_tensor_parallel and not compiles_model(job):
        raise ConfigError(
            "parallelism.enable_async_tensor_parallel = true needs compile.enable = true with 'model' in "
            "compile.components."
        )


def has_experts(model_args: Any) -> bool:
    return getattr(model_args, "moe_args", None) is not None and getattr(model_args, "moe_enabled", True)


def check_experts(job: MosaicJobConfig, facts: Facts) -> None:
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
    if experts == 1 and layout.expert_parallel_comm_backend != "standard":
        raise ConfigError('parallelism.expert_parallel_comm_backend = "deepep" needs expert_parallel_degree above 1.')
    if experts == 1:
        return
    if experts < 1:
        raise ConfigError(f"parallelism.expert_parallel_degree = {experts}: must be at least 1.")
    if not has_experts(facts.model_args):
        raise ConfigError(
            f"parallelism.expert_parallel_degree = {experts}: {job.model.name} {job.model.flavor} has no experts; "
            "it must be 1."
        )
    ranks = facts.world_size // layout.pipeline_parallel_degree // layout.data_parallel_replicate_degree
    if ranks % (experts * expert_tp):
        raise ConfigError(
            f"parallelism.expert_parallel_degree {experts} * expert_tensor_parallel_degree {expert_tp} must divide the "
            f"{ranks} processes of a replica and pipeline stage."
        )
    if facts.on_cpu:  # its kernels are Triton's
        raise ConfigError(f"parallelism.expert_parallel_degree = {experts} needs an accelerator; here it must be 1.")
    if layout.expert_parallel_comm_backend == "deepep":
        check_deepep(job)


def check_deepep(job: MosaicJobConfig) -> None:
    """DeepEP is a package of its own, and TorchTitan has it for some models."""
    needs = {
        f"one of {', '.join(DEEPEP_MODELS)}": job.model.name in DEEPEP_MODELS,
        "expert_tensor_parallel_degree = 1": job.parallelism.expert_tensor_parallel_degree == 1,
        "the package deep_ep (github.com/deepseek-ai/DeepEP)": importlib.util.find_spec("deep_ep") is not None,
    }
    for need, here in needs.items():
        if not here:
            raise ConfigError(f'parallelism.expert_parallel_comm_backend = "deepep" needs {need}; "standard" does not.')


def check_pipeline(job: MosaicJobConfig, facts: Facts) -> None:
    """The schedule must exist, and the batch be whole micro-batches of one shape."""
    layout, training = job.parallelism, job.training
    if layout.pipeline_parallel_degree == 1:
        return
    given = layout.pipeline_parallel_schedule
    if given.lower() not in [name.lower() for name in SCHEDULES]:
        raise ConfigError(f"parallelism.pipeline_parallel_schedule = {given!r}.{nearest(given, SCHEDULES)}")
    if given.lower() in V_SCHEDULES and facts.on_cpu and not layout.pipeline_parallel_schedule_csv:
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


def check_activation_checkpoint(job: MosaicJobConfig, facts: Facts) -> None:
    """A memory budget is kept by the compiler; a selective option is "op" or every how many blocks."""
    table = job.activation_checkpoint
    if table.mode == "memory_budget" and not compiles_model(job):
        raise ConfigError(
            'activation_checkpoint.mode = "memory_budget" needs compile.enable = true with "model" in '
            "compile.components."
        )
    option = table.selective_ac_option
    if table.determinism_check not in ("default", "none"):
        raise ConfigError(
            f"activation_checkpoint.determinism_check = {table.determinism_check!r} must be 'default' or 'none'."
        )
    if table.mode == "selective" and option != "op" and not (option.isdigit() and int(option) > 0):
        raise ConfigError(
            f"activation_checkpoint.selective_ac_option = {option!r} must be 'op' or a positive number, as a string: "
            "every how many blocks one is checkpointed."
        )
    if table.mode == "selective" and option == "op":
        if table.debug:
            raise ConfigError('activation_checkpoint.debug = true: torch has it not with selective_ac_option = "op".')
        check_recomputed(table.per_op_sac_force_recompute_mm_shapes_by_fqns, facts)


def check_recomputed(names: list[str], facts: Facts) -> None:
    """Layers whose products are computed again are named by a part of their name, which no other module may have."""
    layers = getattr(facts.model, "layers", None)
    if layers is None or names == ActivationCheckpoint().per_op_sac_force_recompute_mm_shapes_by_fqns:
        return
    for name in names:
        found = {f"layers.{path}": module for path, module in layers.named_modules() if name in f"layers.{path}"}
        others = [path for path, module in found.items() if not isinstance(module, nn.Linear)]
        if others or not found:
            what = f"finds {others[0]}, which is no linear layer" if others else "finds no layer"
            raise ConfigError(
                f"activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns: {name!r} {what}; right is e.g. "
                f"'layers.{next(path for path, module in layers.named_modules() if isinstance(module, nn.Linear))}'."
            )


def compiles_model(job: MosaicJobConfig) -> bool:
    return job.compile.enable and "model" in job.compile.components
