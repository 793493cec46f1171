"""0.3's checkpointing and compilation of a model as 0.2.2 is asked for them, for a model that is not TorchTitan's;
and what 0.3 cannot lay out."""

from __future__ import annotations

from typing import Any

import torch.nn as nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.attention.flex_attention import _DEFAULT_SPARSE_BLOCK_SIZE
from torchtitan.distributed.compile import _maybe_enable_async_tp

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import ActivationCheckpoint, Compile, MosaicJobConfig
from mosaic_photon.titan.v03.config import activation_checkpoint, compilation
from mosaic_photon.titan.v03.names import Names


def apply_ac(model: nn.Module, table: ActivationCheckpoint, base_folder: str, **_: Any) -> None:
    """Wrap each of the model's `layers` as the job's table says."""
    policy = activation_checkpoint(table, Names())
    policy.build(dump_folder=base_folder).apply(model)


def apply_compile(model: Any, table: Compile) -> None:
    """Compile each of the model's `layers`."""
    for layer in model.layers.children():
        layer.compile(backend=table.backend, fullgraph=True)


def maybe_enable_async_tp(job: MosaicJobConfig, mesh: DeviceMesh) -> None:
    """As the job says."""
    _maybe_enable_async_tp(compilation(job), mesh)


def check_layout(job: MosaicJobConfig, facts: Facts) -> None:
    """Raises ConfigError: a layout that 0.3 does not have of this model."""
    check_tied(job, facts)
    check_context(job, facts)


def check_tied(job: MosaicJobConfig, facts: Facts) -> None:
    """The first and the last stage of a pipeline cannot have one weight."""
    stages = job.parallelism.pipeline_parallel_degree
    if stages > 1 and getattr(facts.model_args, "enable_weight_tying", False):
        raise ConfigError(
            f"parallelism.pipeline_parallel_degree = {stages}: the head of {job.model.name} {job.model.flavor} is its "
            "embedding, which a pipeline would part; set it to 1, or [model.overrides] enable_weight_tying = false."
        )


def check_context(job: MosaicJobConfig, facts: Facts) -> None:
    """0.3 shares a sequence out to its own flex attention only, in whole blocks of its masks."""
    degree = job.parallelism.context_parallel_degree
    if degree == 1:
        return
    if not facts.spec.is_titans:
        raise ConfigError(
            f"parallelism.context_parallel_degree = {degree}: TorchTitan 0.3 cannot split the attention of "
            f"{job.model.name}; set it to 1, or train on 0.2.2."
        )
    if getattr(facts.model_args, "attn_type", None) == "varlen":
        raise ConfigError(
            f"parallelism.context_parallel_degree = {degree}: TorchTitan 0.3 cannot split attn_type = 'varlen' of "
            f"{job.model.name} {job.model.flavor}; choose another flavor, or set [model.overrides] attn_type = 'flex'."
        )
    whole = degree * _DEFAULT_SPARSE_BLOCK_SIZE
    for table in ("training", "validation"):
        length = getattr(job, table).seq_len
        if length % whole and (table == "training" or job.validation.enable):
            raise ConfigError(
                f"{table}.seq_len = {length} must be a multiple of {whole}: TorchTitan 0.3 shares it out in blocks of "
                f"{_DEFAULT_SPARSE_BLOCK_SIZE} positions to context_parallel_degree = {degree}."
            )
