"""TorchTitan's `build_optimizers_fn`: any optimizer by name, with parameter groups from the model's parametrization."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.nn as nn

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import Optimizer as OptimizerConfig
from mosaic_photon.optimizers.catalog import TITAN, Choice, choose
from mosaic_photon.optimizers.container import GroupedOptimizers
from mosaic_photon.optimizers.groups import compile_patterns, parameter_groups, scales_of, trainable
from mosaic_photon.titan.layouts import ParallelDims
from mosaic_photon.titan.parts import OptimizersContainer


def build_optimizers(
    model_parts: list[nn.Module], optimizer_config: OptimizerConfig, parallel_dims: ParallelDims
) -> OptimizersContainer:
    """The job's optimizers, one a model part.

    A model part may define `parameter_scales()`; see `parametrization`. TorchTitan's expert load balancing is a hook
    that its own builder puts on the container that this one returns; see `compat.moe_load_balancing`.

    Raises:
        ConfigError: unknown optimizer, a field that it does not take, a value out of range, a `no_decay` pattern that
            is malformed or finds nothing, an embedding with sparse gradients, or early_step_in_backward where
            TorchTitan has none.
    """
    choice = choose(optimizer_config)
    refuse_sparse(model_parts)
    groups = build_groups(model_parts, optimizer_config, choice, parallel_dims.pp_enabled)
    if optimizer_config.early_step_in_backward:
        return _step_in_backward(model_parts, optimizer_config, parallel_dims, groups)
    try:
        return GroupedOptimizers(model_parts, choice, groups)
    except ConfigError as error:
        raise ConfigError(f"[optimizer] {error}") from error.__cause__


def build_groups(
    model_parts: list[nn.Module], config: OptimizerConfig, choice: Choice, pipelined: bool
) -> list[list[dict[str, Any]]]:
    """Parameter groups of each model part."""
    named = [trainable(part) for part in model_parts]
    # Under pipelining a pattern may be meant for another rank's parts.
    names = None if pipelined else [name for part in named for name, _ in part]
    no_decay = compile_patterns(config.no_decay, names)
    return [
        parameter_groups(part_named, scales_of(part), no_decay, choice.options, choice.decay_includes_lr)
        for part, part_named in zip(model_parts, named, strict=True)
    ]


def refuse_sparse(model_parts: list[nn.Module]) -> None:
    """Raise ConfigError for an embedding whose gradients are sparse tensors."""
    for part in model_parts:
        for name, module in part.named_modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
                raise ConfigError(f"the model's {name} has sparse gradients, which no optimizer here takes.")


def _step_in_backward(
    model_parts: list[nn.Module],
    config: OptimizerConfig,
    parallel_dims: ParallelDims,
    groups: list[list[dict[str, Any]]],
) -> OptimizersContainer:
    """TorchTitan 0.2's own container, which knows Adam and AdamW and one group."""
    from mosaic_photon.titan.config import Optimizer as TitanOptimizerConfig
    from mosaic_photon.titan.parts import build_optimizers as titan_build_optimizers

    if config.name not in TITAN:
        raise ConfigError(f"optimizer.early_step_in_backward: TorchTitan has it for {' and '.join(TITAN)} alone.")
    if config.kwargs or any(len(part_groups) > 1 for part_groups in groups):
        raise ConfigError(
            "optimizer.early_step_in_backward cannot be combined with no_decay, [mup] or [optimizer.kwargs]."
        )
    known = {field.name for field in dataclasses.fields(TitanOptimizerConfig)}
    given = {key: value for key, value in dataclasses.asdict(config).items() if key in known and value is not None}
    return titan_build_optimizers(model_parts, TitanOptimizerConfig(**given), parallel_dims)
