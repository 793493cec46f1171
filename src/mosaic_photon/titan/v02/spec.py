"""TrainSpecs: TorchTitan 0.2.2's description of a model and of what trains it, and its registry of them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
import torch.nn as nn
from torchtitan.components.loss import build_cross_entropy_loss
from torchtitan.components.optimizer import build_optimizers_with_moe_load_balancing
from torchtitan.components.tokenizer import build_hf_tokenizer
from torchtitan.models import _supported_models
from torchtitan.protocols import train_spec as registry
from torchtitan.protocols.train_spec import TrainSpec, get_train_spec, register_train_spec

from mosaic_photon.compat import layout_independent_init, tokenizer_end_token
from mosaic_photon.compat.cpu_device_type import ON_CPU
from mosaic_photon.compat.ddp_gradients import for_averaged_gradients
from mosaic_photon.compat.gloo_fsdp_reduction import force_sum_reduction
from mosaic_photon.compat.moe_load_balancing import with_load_balancing
from mosaic_photon.compat.pipeline_gradients import DividedLoss
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.interface import Builders, OwnModel, Parts, TrainLoader
from mosaic_photon.titan.layouts import ParallelDims
from mosaic_photon.titan.metrics import build_metrics_processor
from mosaic_photon.titan.row_losses import KeepRows, cross_entropy_of_each, keeping_rows
from mosaic_photon.titan.v02.layouts import check_degrees
from mosaic_photon.titan.validator import build_validator

UNBALANCED = ("qwen3",)
"""Models whose experts TorchTitan would balance if their specs asked for it; 0.3's do."""


def known_models() -> list[str]:
    """TorchTitan's models, and those that are registered with it."""
    return sorted(_supported_models | registry._extra_train_specs.keys())


def model_spec(name: str, builders: Builders, own: OwnModel | None = None) -> TrainSpec:
    """The TrainSpec of TorchTitan's model `name`, or of `own`, with this package's parts and model args to change."""
    upstream = get_train_spec(name) if own is None else _spec_of(own, builders)
    balanced = upstream.build_optimizers_fn is build_optimizers_with_moe_load_balancing or name in UNBALANCED
    return dataclasses.replace(
        upstream,
        model_args=copy.deepcopy(dict(upstream.model_args)),  # the trainer writes the job's values into them
        parallelize_fn=_with_our_initialisation(upstream.parallelize_fn),
        build_tokenizer_fn=_with_end_token(upstream.build_tokenizer_fn),
        build_optimizers_fn=with_load_balancing(builders.optimizers) if balanced else builders.optimizers,
        build_lr_schedulers_fn=builders.schedules,
        build_dataloader_fn=builders.dataloader,
        build_loss_fn=_with_right_gradients(upstream.build_loss_fn),
        build_validator_fn=build_validator(builders.eval_dataloaders),
        build_metrics_processor_fn=build_metrics_processor,
    )


def register(name: str, spec: TrainSpec) -> None:
    """Raises ValueError if TorchTitan has a TrainSpec of this name."""
    register_train_spec(name, spec)


def put(name: str, spec: TrainSpec) -> None:
    """Register `spec` in place of any of the same name."""
    registry._extra_train_specs[name] = spec


def put_parts(name: str, parts: Parts) -> None:
    """Let TorchTitan's Trainer find the job's spec, with the job's open data in it."""
    data = parts.data

    def dealt(dp_world_size: int, dp_rank: int, **kwargs: Any) -> TrainLoader:
        data.deal(dp_world_size, dp_rank)
        return data.loader

    spec = dataclasses.replace(
        parts.spec,
        build_dataloader_fn=dealt,
        build_lr_schedulers_fn=parts.schedules,
        build_loss_fn=partial(parts.spec.build_loss_fn, keep_rows=parts.loop.keep_rows),
        build_validator_fn=build_validator(lambda **_: data.eval_loaders),
    )
    put(name, spec)


def _spec_of(own: OwnModel, builders: Builders) -> TrainSpec:
    return TrainSpec(
        model_cls=own.model_cls,
        model_args=own.model_args,
        parallelize_fn=own.parallelize_fn,
        pipelining_fn=own.pipelining_fn,
        build_optimizers_fn=builders.optimizers,
        build_lr_schedulers_fn=builders.schedules,
        build_dataloader_fn=builders.dataloader,
        build_tokenizer_fn=build_hf_tokenizer,
        build_loss_fn=build_cross_entropy_loss,
        state_dict_adapter=own.state_dict_adapter,
    )


def _with_our_initialisation(parallelize: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`parallelize` with initial weights that no layout changes, and FSDP's reductions where gloo does them."""

    def parallelize_fn(model: nn.Module, parallel_dims: ParallelDims, job_config: MosaicJobConfig) -> nn.Module:
        check_degrees(job_config, parallel_dims.world_size, ON_CPU)
        model = parallelize(model, parallel_dims, job_config)
        if parallel_dims.fsdp_enabled and torch.distributed.get_backend() == "gloo":
            force_sum_reduction(model)
        layout_independent_init.seed_init_by_name(model, layout_independent_init.job_seed(job_config.debug.seed))
        return model

    return parallelize_fn


def _with_end_token(build_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    """`build_tokenizer` with the ids that TorchTitan misses."""

    def build_tokenizer_fn(job: MosaicJobConfig) -> Any:
        dataset = job.mosaic.dataloader["dataset"]
        return tokenizer_end_token.complete(build_tokenizer(job), job.model.hf_assets_path, dataset)

    return build_tokenizer_fn


def _with_right_gradients(build_loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss whose gradients are right where TorchTitan's Trainer gets them wrong, or that it can't be trained with."""

    @wraps(build_loss)
    def build_loss_fn(
        job_config: MosaicJobConfig, parallel_dims: ParallelDims, keep_rows: KeepRows | None = None, **kwargs: Any
    ) -> Any:
        loss_fn = build_loss(job_config, parallel_dims=parallel_dims, **kwargs)
        if keep_rows is not None:
            loss_fn = keeping_rows(_compiled(cross_entropy_of_each, job_config), keep_rows)
        if parallel_dims.pp_enabled:
            return DividedLoss(loss_fn)
        if parallel_dims.dp_replicate_enabled and not parallel_dims.fsdp_enabled:
            return for_averaged_gradients(loss_fn, parallel_dims.dp_replicate)
        return loss_fn

    return build_loss_fn


def _compiled(loss_fn: Callable[..., Any], job_config: MosaicJobConfig) -> Callable[..., Any]:
    """As TorchTitan compiles its loss."""
    table = job_config.compile
    return torch.compile(loss_fn, backend=table.backend) if table.enable and "loss" in table.components else loss_fn


def has_cross_entropy(spec: TrainSpec) -> bool:
    """Whether a spec of `model_spec` is trained by TorchTitan's cross-entropy."""
    return inspect.unwrap(spec.build_loss_fn) is build_cross_entropy_loss
