"""The models that a job may name, each fed by Mosaic streams, with this project's optimizers and schedules.

`<name>_mosaic` is TorchTitan's model `<name>` with the dataloader, optimizer, schedule, validator and metrics replaced;
`mpt_mup_mosaic` is llm-foundry's MPT. Model code, parallelisation, loss and state dict adapter stay the model's own.
"""

import copy
import dataclasses
import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from mosaic_photon import titan
from mosaic_photon.callbacks.registry import check_callbacks
from mosaic_photon.checkpoints.checks import check_checkpoint
from mosaic_photon.checkpoints.find import find_start
from mosaic_photon.compat.cpu_device_type import ON_CPU
from mosaic_photon.dataloader.build import build_mosaic_eval_dataloaders
from mosaic_photon.dataloader.checks import CHECKS as dataloader_checks
from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.foundry import foundry_module
from mosaic_photon.job import checks
from mosaic_photon.job.checks import Check, in_order
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.layout_checks import data_parallel_degree
from mosaic_photon.job.load import read_job
from mosaic_photon.job.remarks import remarks_on
from mosaic_photon.job.run_length import RunLength
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.models.documents import separate_documents
from mosaic_photon.models.model_args import apply_model_overrides, build_on_meta, check_flex_heads, check_sizes
from mosaic_photon.names import import_named
from mosaic_photon.optimizers.builder import build_optimizers
from mosaic_photon.optimizers.catalog import check_optimizer
from mosaic_photon.schedulers.builder import build_lr_schedulers, check_schedule
from mosaic_photon.titan.converters import check_converters
from mosaic_photon.titan.fields import check_fields
from mosaic_photon.titan.interface import Builders, OwnModel
from mosaic_photon.titan.spec import TrainSpec
from mosaic_photon.titan.stages import check_stages
from mosaic_photon.titan.tools import logger
from mosaic_photon.train.data import JobData, build_dataloader, open_loaders

SUFFIX = "_mosaic"
NOT_TEXT = {"flux"}
"""TorchTitan's models that are not language models."""


def known_models() -> list[str]:
    """Names that a job may give as `[model] name`."""
    names = {name for name in titan.release().known_models() if not name.endswith(SUFFIX)} - NOT_TEXT
    return sorted(f"{name}{SUFFIX}" for name in names | {"mpt_mup"})


def register(name: str) -> TrainSpec:
    """Build the TrainSpec `name` and register it with TorchTitan under that name.

    Raises:
        ConfigError: no such model, or mpt_mup_mosaic without llm-foundry.
        ValueError: TorchTitan already has a TrainSpec of this name.
    """
    spec = build_train_spec(name)
    titan.release().register(name, spec)
    return spec


def spec_of_job(job_config: MosaicJobConfig) -> TrainSpec:
    """The job's model, with its `[model.overrides]` and `[mup]`.

    Raises:
        ConfigError: no such model, flavor or override, or a job that the model cannot run.
    """
    import_custom(job_config)
    spec = build_train_spec(job_config.model.name)
    apply_model_overrides(spec, job_config)
    separate_documents(spec, job_config)
    if job_config.mup.enabled:
        apply_mup(spec, job_config)
    if job_config.mup.enabled or job_config.model.name == "mpt_mup_mosaic":
        model_args = copy.deepcopy(spec.model_args[job_config.model.flavor])
        model_args.update_from_config(job_config)  # for its checks; the trainer's call is the one that counts
    if job_config.model.name == "mpt_mup_mosaic":
        check_safetensors(job_config, model_args)
    return spec


def check_safetensors(job_config: MosaicJobConfig, model_args: Any) -> None:
    """Where a job of an MPT begins from safetensors, compare them with the model.

    Raises:
        ConfigError: they are not there, or are another model's.
    """
    from mosaic_photon.models.mpt_mup.hf import check_folder

    start = find_start(job_config)
    if start.hf and start.path:
        check_folder(start.path, model_args)


def import_custom(job_config: MosaicJobConfig) -> None:
    """Import `[experimental] custom_import`, which may register the model that the job names.

    Raises:
        ConfigError: it cannot be imported. What else goes wrong in it is shown as it is.
    """
    if module := job_config.experimental.custom_import:
        import_named(module, f"experimental.custom_import = {module!r}")


PART_CHECKS: dict[str, tuple[Check, ...]] = {
    "dataloader": dataloader_checks,
    "models": (check_sizes, check_flex_heads),
    "titan": (check_fields, titan.release().check_layout, check_stages, check_converters),
    "optimizers": (check_optimizer,),
    "schedulers": (check_schedule,),
    "callbacks": (check_callbacks,),
    "checkpoints": (check_checkpoint,),
}
"""What the parts hand in to the job's list of checks."""


def facts_of(job_config: MosaicJobConfig, spec: TrainSpec) -> Facts:
    """What the checks know beside the job, as this process has it from its launcher."""
    pretended = job_config.comm.mode == "fake_backend" and os.environ.get("NGPU", "").isdecimal()
    launched = {"RANK": 0, "NGPU" if pretended else "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
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
    if facts.rank == 0:
        for remark in remarks_on(job_config, facts):
            logger.warning(remark)
    return data_parallel_degree(job_config, facts.world_size)


def load_job_model(path: str, flags: Sequence[str] = ()) -> tuple[Any, Any]:
    """The job config at `path`, flags applied, and a copy of its flavor's model args, `[model.overrides]` applied.

    For commands that need the model but not the data.

    Raises:
        ConfigError: a missing or malformed file, an unknown table, field, model, flavor or override.
    """
    job = read_job(path, list(flags))
    job.checkpoint.initial_load_in_hf = False  # no such command loads those weights, and one makes them
    if not job.model.hf_assets_path:
        raise ConfigError(f"{path}: model.hf_assets_path is missing; name a folder with tokenizer.json.")
    import_custom(job)
    spec = build_train_spec(job.model.name)
    apply_model_overrides(spec, job)
    return job, spec.model_args[job.model.flavor]


def data_of_job(spec: TrainSpec, job_config: MosaicJobConfig, dp_world_size: int) -> JobData:
    """Open the job's data, before the trainer is built, and check what only they tell.

    Raises:
        ConfigError: the first mistake found.
    """

    def check_with_data(run: RunLength) -> None:
        facts = dataclasses.replace(facts_of(job_config, spec), run_length=run)
        for check in in_order(checks.WITH_DATA, PART_CHECKS):
            check(job_config, facts)

    return open_loaders(spec, job_config, dp_world_size, check_with_data)


def register_llama3_mosaic() -> None:
    """Register TorchTitan's Llama 3 on Mosaic streams as `llama3_mosaic`."""
    register("llama3_mosaic")


def register_mpt_mup_mosaic() -> None:
    """Register llm-foundry's MPT as `mpt_mup_mosaic`; without llm-foundry warn and register nothing."""
    try:
        foundry_module("llmfoundry.layers_registry", "mpt_mup_mosaic is not registered: it")
    except ConfigError as error:
        logging.getLogger(__name__).warning(error)
        return
    register("mpt_mup_mosaic")


def build_train_spec(name: str) -> TrainSpec:
    """The TrainSpec for `<TorchTitan model>_mosaic` or `mpt_mup_mosaic`, with model args of its own to change.

    Raises:
        ConfigError: no such model, or mpt_mup_mosaic without llm-foundry.
    """
    if name.removesuffix(SUFFIX) in NOT_TEXT:
        raise ConfigError(f"model.name: {name!r} is no language model, and Mosaic streams are text here.")
    if name not in (known := known_models()):
        if instead := titan.release().NOT_HERE.get(name.removesuffix(SUFFIX)):
            raise ConfigError(f"model.name = {name!r}: {instead}. Here there are {', '.join(known)}.")
        raise ConfigError(f"model.name: there is no model {name!r}.{nearest(name, known)}")
    builders = Builders(build_dataloader, build_mosaic_eval_dataloaders, build_optimizers, build_lr_schedulers)
    own = _mpt() if name == "mpt_mup_mosaic" else None
    return titan.release().model_spec(name.removesuffix(SUFFIX), builders, own)


def apply_mup(spec: TrainSpec, job_config: MosaicJobConfig) -> None:
    """Let Llama 3 follow `[mup]`; MPT does by itself.

    Raises:
        ConfigError: a model without a parametrization.
    """
    name, flavor = job_config.model.name, job_config.model.flavor
    if name == "llama3_mosaic":
        titan.release().add_llama3_mup(spec, flavor)
    elif name != "mpt_mup_mosaic":
        raise ConfigError(f"[mup] enabled = true: {name} has no muP; llama3_mosaic and mpt_mup_mosaic have.")


def _mpt() -> OwnModel:
    foundry_module("llmfoundry.layers_registry", "model.name: mpt_mup_mosaic")
    from mosaic_photon.models import mpt_mup

    return OwnModel(
        model_cls=mpt_mup.TitanComposerMPTMuP,
        model_args=mpt_mup.MPT_MUP_CONFIGS,
        parallelize_fn=mpt_mup.parallelize_mpt,
        pipelining_fn=mpt_mup.pipeline_mpt,
        state_dict_adapter=mpt_mup.MPTStateDictAdapter,
    )
