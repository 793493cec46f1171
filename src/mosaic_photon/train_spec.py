"""The TrainSpecs: a TorchTitan language model, fed by Mosaic streams, with this project's optimizers and schedules.

`<name>_mosaic` is TorchTitan's model `<name>` with the dataloader, optimizer, schedule, validator and metrics replaced;
`mpt_mup_mosaic` is llm-foundry's MPT. Model code, parallelisation, loss and state dict adapter stay the model's own.
"""

import copy
import dataclasses
import importlib.util
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from mosaic_photon.callbacks.registry import check_callbacks
from mosaic_photon.checkpoints.checks import check_checkpoint
from mosaic_photon.compat import layout_independent_init, tokenizer_end_token
from mosaic_photon.compat.cpu_device_type import ON_CPU
from mosaic_photon.compat.ddp_gradients import for_averaged_gradients
from mosaic_photon.compat.gloo_fsdp_reduction import force_sum_reduction
from mosaic_photon.compat.moe_load_balancing import with_load_balancing
from mosaic_photon.compat.pipeline_gradients import DividedLoss
from mosaic_photon.compat.unset_parameters import zero_before_init
from mosaic_photon.dataloader import DataSpecDataLoader, build_mosaic_dataloader, build_mosaic_eval_dataloader
from mosaic_photon.dataloader.build import seats_of_job
from mosaic_photon.dataloader.checks import CHECKS as dataloader_checks
from mosaic_photon.dataloader.loader import Data, EvalLoader
from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.job import checks
from mosaic_photon.job.checks import Check, in_order
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.layout_checks import data_parallel_degree
from mosaic_photon.job.load import read_job
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.models.model_args import apply_model_overrides, build_on_meta, check_sizes
from mosaic_photon.optimizers.builder import build_optimizers
from mosaic_photon.optimizers.catalog import check_optimizer
from mosaic_photon.schedulers.builder import build_lr_schedulers, check_schedule
from mosaic_photon.schedulers.run_length import Position, RunLength
from mosaic_photon.titan.layouts import ParallelDims
from mosaic_photon.titan.parts import (
    build_cross_entropy_loss,
    build_hf_tokenizer,
    build_optimizers_with_moe_load_balancing,
)
from mosaic_photon.titan.spec import TrainSpec, _supported_models, get_train_spec, register_train_spec
from mosaic_photon.titan.spec import train_spec as titan_specs
from mosaic_photon.titan.stages import check_stages
from mosaic_photon.tokenizers import notes_on, special_tokens
from mosaic_photon.train.metrics import build_metrics_processor
from mosaic_photon.train.validator import build_validator

SUFFIX = "_mosaic"
NOT_TEXT = {"flux"}
"""TorchTitan's models that are not language models."""


def known_models() -> list[str]:
    """Names that a job may give as `[model] name`."""
    return sorted(f"{name}{SUFFIX}" for name in (_supported_models - NOT_TEXT) | {"mpt_mup"})


def register(name: str) -> TrainSpec:
    """Build the TrainSpec `name` and register it with TorchTitan under that name.

    Raises:
        ConfigError: no such model, or mpt_mup_mosaic without llm-foundry.
        ValueError: TorchTitan already has a TrainSpec of this name.
    """
    spec = build_train_spec(name)
    register_train_spec(name, spec)
    return spec


def register_for_job(job_config: MosaicJobConfig) -> TrainSpec:
    """Build the job's TrainSpec, with its `[model.overrides]`, in place of any earlier one of the same name.

    Raises:
        ConfigError: no such model, flavor or override, or a job that the model cannot run.
    """
    spec = build_train_spec(job_config.model.name)
    apply_model_overrides(spec, job_config)
    if job_config.mup.enabled:
        apply_mup(spec, job_config)
    if job_config.mup.enabled or job_config.model.name == "mpt_mup_mosaic":
        model_args = copy.deepcopy(spec.model_args[job_config.model.flavor])
        model_args.update_from_config(job_config)  # for its checks; the trainer's call is the one that counts
    if job_config.model.name == "mpt_mup_mosaic":
        from mosaic_photon.models.mpt_mup.hf import check_initial_load

        check_initial_load(job_config, model_args)
    titan_specs._extra_train_specs[job_config.model.name] = spec
    return spec


PART_CHECKS: dict[str, tuple[Check, ...]] = {
    "dataloader": dataloader_checks,
    "models": (check_sizes,),
    "titan": (check_stages,),
    "optimizers": (check_optimizer,),
    "schedulers": (check_schedule,),
    "callbacks": (check_callbacks,),
    "checkpoints": (check_checkpoint,),
}
"""What the parts hand in to the job's list of checks."""


def facts_of(job_config: MosaicJobConfig, spec: TrainSpec) -> Facts:
    """What the checks know beside the job, as this process has it from its launcher."""
    launched = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    environment = (int(os.environ.get(name, alone)) for name, alone in launched.items())
    model_args = spec.model_args[job_config.model.flavor]
    return Facts(spec, model_args, partial(build_on_meta, job_config, spec), ON_CPU, *environment)


def check_job(job_config: MosaicJobConfig, spec: TrainSpec) -> int:
    """Check what can be known from the configs, the environment and the tokenizer; returns the data-parallel degree.

    Raises:
        ConfigError: the first thing found that the job cannot do.
    """
    facts = facts_of(job_config, spec)
    for check in in_order(checks.ORDER, PART_CHECKS):
        check(job_config, facts)
    return data_parallel_degree(job_config, facts.world_size)


def load_job_model(path: str) -> tuple[Any, Any]:
    """The job config at `path` and a copy of its flavor's model args, `[model.overrides]` applied.

    For commands that need the model but not the data.

    Raises:
        ConfigError: a missing or malformed file, an unknown table, field, model, flavor or override.
    """
    job = read_job(path, [])
    job.checkpoint.initial_load_in_hf = False  # no such command loads those weights, and one makes them
    if not job.model.hf_assets_path:
        raise ConfigError(f"{path}: model.hf_assets_path is missing; name a folder with tokenizer.json.")
    spec = build_train_spec(job.model.name)
    apply_model_overrides(spec, job)
    return job, spec.model_args[job.model.flavor]


def open_data(
    spec: TrainSpec, job_config: MosaicJobConfig, dp_world_size: int
) -> list[DataSpecDataLoader | EvalLoader]:
    """Open the job's data and give `spec` what follows from it: the open loaders, and how long the run is.

    Done before the trainer is built, so that a mistake in the data, the schedule or the optimizer's arguments ends the
    job before anything is written.

    Raises:
        ConfigError: the first mistake found.
    """
    tokenizer = spec.build_tokenizer_fn(job_config)
    if os.environ["RANK"] == "0":
        for note in notes_on(special_tokens(job_config.model.hf_assets_path)):
            logging.getLogger(__name__).warning(note)
    loader = build_mosaic_dataloader(dp_world_size, 0, tokenizer, job_config)
    training, batch = job_config.training, loader.layout.global_batch
    begin = Position(loader.begin_step, loader.begin.samples, loader.begin.tokens) if loader.begin_step else Position()
    run = RunLength(training.steps, batch, batch * training.seq_len, loader.summary.steps_per_epoch, begin)
    facts = dataclasses.replace(facts_of(job_config, spec), run_length=run)
    for check in in_order(checks.WITH_DATA, PART_CHECKS):
        check(job_config, facts)
    read_some(loader.data)

    def build_dataloader_fn(dp_world_size: int, dp_rank: int, **kwargs: Any) -> DataSpecDataLoader:
        assert dp_world_size == loader.layout.dp_world_size
        seats = seats_of_job(dp_world_size, dp_rank)
        loader.layout = dataclasses.replace(loader.layout, dp_rank=dp_rank, seats=seats)
        return loader

    spec.build_dataloader_fn = build_dataloader_fn
    spec.build_lr_schedulers_fn = partial(build_lr_schedulers, run_length=run)
    if not job_config.validation.enable:
        return [loader]
    eval_loader = build_mosaic_eval_dataloader(dp_world_size, 0, tokenizer, job_config)
    read_some(eval_loader.data)
    spec.build_validator_fn = partial(build_validator, loader=eval_loader)
    return [loader, eval_loader]


def read_some(data: Data, samples: int = 64) -> None:
    """Read samples from all over this process's part of the shards that are already on this machine.

    Another rank of the machine may just be replacing a damaged shard of its own part.

    Raises:
        ConfigError: one of them cannot be used, e.g. has a token outside the vocabulary.
    """
    dataset = data.dataset
    ids = np.unique(np.linspace(0, dataset.num_samples - 1, samples, dtype=np.int64))
    shard_ids, _ = dataset.locate(ids)
    rank, ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    here = [int(shard) % ranks == rank and dataset.cache.is_here(int(shard)) for shard in shard_ids]
    if any(here):
        data.make_batch(ids[here])
        dataset.reader.close()


def register_llama3_mosaic() -> None:
    """Register TorchTitan's Llama 3 on Mosaic streams as `llama3_mosaic`."""
    register("llama3_mosaic")


def register_mpt_mup_mosaic() -> None:
    """Register llm-foundry's MPT as `mpt_mup_mosaic`; without llm-foundry warn and register nothing."""
    if importlib.util.find_spec("llmfoundry") is None:
        logging.getLogger(__name__).warning(
            "mpt_mup_mosaic is not registered: it needs llm-foundry (pip install llm-foundry mosaicml)."
        )
        return
    register("mpt_mup_mosaic")


def build_train_spec(name: str) -> TrainSpec:
    """The TrainSpec for `<TorchTitan model>_mosaic` or `mpt_mup_mosaic`, with model args of its own to change."""
    if name.removesuffix(SUFFIX) in NOT_TEXT:
        raise ConfigError(f"model.name: {name!r} is no language model, and Mosaic streams are text here.")
    if name not in known_models():
        raise ConfigError(f"model.name: there is no model {name!r}.{nearest(name, known_models())}")
    upstream = _mpt_train_spec() if name == "mpt_mup_mosaic" else get_train_spec(name.removesuffix(SUFFIX))
    moe = upstream.build_optimizers_fn is build_optimizers_with_moe_load_balancing
    return dataclasses.replace(
        upstream,
        model_args=copy.deepcopy(dict(upstream.model_args)),  # the trainer writes the job's values into them
        parallelize_fn=_with_our_initialisation(upstream.parallelize_fn),
        build_tokenizer_fn=_with_end_token(upstream.build_tokenizer_fn),
        build_optimizers_fn=with_load_balancing(build_optimizers) if moe else build_optimizers,
        build_lr_schedulers_fn=build_lr_schedulers,
        build_dataloader_fn=build_mosaic_dataloader,
        build_loss_fn=_with_right_gradients(upstream.build_loss_fn),
        build_validator_fn=build_validator,
        build_metrics_processor_fn=build_metrics_processor,
    )


def apply_mup(spec: TrainSpec, job_config: MosaicJobConfig) -> None:
    """Let Llama 3 follow `[mup]`; MPT does by itself.

    Raises:
        ConfigError: a model without a parametrization.
    """
    name, flavor = job_config.model.name, job_config.model.flavor
    if name == "llama3_mosaic":
        from mosaic_photon.models.llama3_mup import Llama3MuPModelArgs, Llama3MuPTransformer

        spec.model_cls = Llama3MuPTransformer
        spec.model_args[flavor] = Llama3MuPModelArgs.of(spec.model_args[flavor])
    elif name != "mpt_mup_mosaic":
        raise ConfigError(f"[mup] enabled = true: {name} has no muP; llama3_mosaic and mpt_mup_mosaic have.")


def _mpt_train_spec() -> TrainSpec:
    if importlib.util.find_spec("llmfoundry") is None:
        raise ConfigError("model.name: mpt_mup_mosaic needs llm-foundry (pip install llm-foundry mosaicml).")
    from mosaic_photon.models import mpt_mup

    return TrainSpec(
        model_cls=mpt_mup.TitanComposerMPTMuP,
        model_args=mpt_mup.MPT_MUP_CONFIGS,
        parallelize_fn=mpt_mup.parallelize_mpt,
        pipelining_fn=mpt_mup.pipeline_mpt,
        build_optimizers_fn=build_optimizers,
        build_lr_schedulers_fn=build_lr_schedulers,
        build_dataloader_fn=build_mosaic_dataloader,
        build_tokenizer_fn=build_hf_tokenizer,
        build_loss_fn=build_cross_entropy_loss,
        state_dict_adapter=mpt_mup.MPTStateDictAdapter,
    )


def _with_our_initialisation(parallelize: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`parallelize` with initial weights that no layout changes, and FSDP's reductions where gloo does them."""

    def parallelize_fn(model: nn.Module, parallel_dims: ParallelDims, job_config: MosaicJobConfig) -> nn.Module:
        model = parallelize(model, parallel_dims, job_config)
        if parallel_dims.fsdp_enabled and torch.distributed.get_backend() == "gloo":
            force_sum_reduction(model)
        zero_before_init(model)
        layout_independent_init.seed_init_by_name(model, layout_independent_init.job_seed(job_config.debug.seed))
        return model

    return parallelize_fn


def _with_end_token(build_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    """`build_tokenizer` with the ids that TorchTitan misses; the data's `eos_token_id` wins over the tokenizer's."""

    def build_tokenizer_fn(job_config: MosaicJobConfig) -> Any:
        tokenizer = tokenizer_end_token.complete(build_tokenizer(job_config), job_config.model.hf_assets_path)
        between = job_config.mosaic.dataloader["dataset"].get("eos_token_id")
        tokenizer.eos_id = tokenizer.eos_id if between is None else between
        return tokenizer

    return build_tokenizer_fn


def _with_right_gradients(build_loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss whose gradients are right where TorchTitan's Trainer gets them wrong, or that it can't be trained with."""

    def build_loss_fn(job_config: MosaicJobConfig, parallel_dims: ParallelDims, **kwargs: Any) -> Any:
        loss_fn = build_loss(job_config, parallel_dims=parallel_dims, **kwargs)
        if parallel_dims.pp_enabled:
            return DividedLoss(loss_fn)
        if parallel_dims.dp_replicate_enabled and not parallel_dims.fsdp_enabled:
            return for_averaged_gradients(loss_fn, parallel_dims.dp_replicate)
        return loss_fn

    return build_loss_fn
