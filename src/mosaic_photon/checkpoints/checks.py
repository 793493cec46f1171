"""What is to be loaded must be there and fit the job; what is to be saved must be possible."""

import os
import shutil
from typing import Any

import torch.nn as nn

from mosaic_photon.checkpoints.contents import missing_files
from mosaic_photon.checkpoints.find import METADATA, Start, checkpoint_folder, complete_steps, find_start
from mosaic_photon.checkpoints.hf import check_index, check_last_save
from mosaic_photon.checkpoints.identity import STATES, bytes_of_checkpoint, mismatches, only_model
from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.files import existing
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.names import human_size
from mosaic_photon.titan.spec import TrainSpec
from mosaic_photon.titan.tools import logger


def check_checkpoint(job: MosaicJobConfig, facts: Facts) -> None:
    """What is to be loaded must be there, and what is to be saved must be possible."""
    checkpoint, spec = job.checkpoint, facts.spec
    if checkpoint.create_seed_checkpoint and not (checkpoint.enable and facts.world_size == 1):
        raise ConfigError(
            f"checkpoint.create_seed_checkpoint needs checkpoint.enable = true (is {checkpoint.enable}) and one "
            f"process (are {facts.world_size})."
        )
    check_index(job, spec)
    if not checkpoint.enable:
        return
    if checkpoint.keep_latest_k == 1:
        raise ConfigError(
            "checkpoint.keep_latest_k = 1: the newest may be half-written; keep at least 2, or 0 for all."
        )
    if checkpoint.last_save_in_hf and not checkpoint.last_save_model_only:
        raise ConfigError("checkpoint.last_save_in_hf = true needs last_save_model_only = true.")
    if (checkpoint.last_save_in_hf or checkpoint.initial_load_in_hf) and spec.state_dict_adapter is None:
        raise ConfigError(f"checkpoint: {job.model.name} has no Hugging Face format to save in or load from.")
    if checkpoint.create_seed_checkpoint and checkpoint.last_save_in_hf:
        raise ConfigError("checkpoint.create_seed_checkpoint: a job cannot begin from one in Hugging Face's format.")
    if checkpoint.last_save_in_hf:
        check_last_save(job, spec, facts.model)
    check_excluded(checkpoint)
    check_start(job, facts)
    if not checkpoint.load_only and facts.rank == 0:
        check_room(job, facts.model)


def check_room(job: MosaicJobConfig, model: nn.Module) -> None:
    """The first checkpoint must fit on the disk."""
    folder, needed = existing(checkpoint_folder(job)), bytes_of_checkpoint(job, model)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"checkpoint.folder: a checkpoint takes {human_size(needed)}, and {folder} has {human_size(free)} free;"
            " make room, or set job.dump_folder to another disk."
        )


def check_start(job: MosaicJobConfig, facts: Facts) -> None:
    """What the job begins from must be whole and fit the job."""
    start = find_start(job)
    if start.path is None or is_finished(job):
        return
    if start.named_by:
        check_initial_load(start, job.checkpoint)
    elif not start.model_only and only_model(start.path):
        raise ConfigError(
            f"{start.path} holds only the model (checkpoint.last_save_model_only, TorchTitan's default), so the run "
            "cannot go on from it. Go on from a whole checkpoint with checkpoint.load_step, or begin another job, with "
            f"a job.dump_folder of its own, from checkpoint.initial_load_path = {start.path!r}."
        )
    if not start.hf and facts.rank == 0 and (faults := missing_files(start.path)):
        raise ConfigError(f"{start.path} is damaged: {'; '.join(faults[:3])}. Name another one, or move it away.")
    check_fits(start, job, facts.spec, facts.model)


def check_fits(start: Start, job: MosaicJobConfig, spec: TrainSpec, model: nn.Module) -> None:
    """The checkpoint must be one of this job, or what does not fit is said and left out."""
    lines = mismatches(start, job, spec, model)
    if not lines:
        return
    text = "\n".join(f"  {line}" for line in lines)
    if job.mosaic.allow_partial_load:
        logger.warning(f"Of {start.path} only what fits the job is loaded:\n{text}")
        return
    raise ConfigError(
        f"{start.path} is a checkpoint of another job:\n{text}\nRestore the job's [model], [model.overrides] and "
        "[optimizer], or load what fits, and leave the rest as it is drawn, with --mosaic.allow_partial_load."
    )


def is_finished(job: MosaicJobConfig) -> bool:
    """Whether the job has trained all its steps and saved its model alone: the same command then has nothing to do."""
    start = find_start(job)
    return start.step >= job.training.steps and start.path is not None and only_model(start.path)


def check_excluded(checkpoint: Any) -> None:
    """States that are not to be loaded must exist."""
    for name in checkpoint.exclude_from_loading:
        if name not in STATES:
            raise ConfigError(f"checkpoint.exclude_from_loading: there is no state {name!r}.{nearest(name, STATES)}")


def check_initial_load(start: Start, checkpoint: Any) -> None:
    """TorchTitan's rules for the weights that a job without a complete checkpoint begins from."""
    assert start.path is not None
    if not os.path.isdir(start.path):
        raise ConfigError(f"{start.named_by} = {start.path!r}: there is no such folder.")
    if start.hf and not start.model_only:
        raise ConfigError("checkpoint.initial_load_in_hf = true needs initial_load_model_only = true.")
    if checkpoint.initial_load_in_hf_quantized and not start.hf:
        raise ConfigError("checkpoint.initial_load_in_hf_quantized = true needs initial_load_in_hf = true.")
    if start.hf:
        if not any(name.endswith(".safetensors") for name in os.listdir(start.path)):
            raise ConfigError(f"{start.named_by} = {start.path!r}: there are no .safetensors files in it.")
    elif not os.path.isfile(os.path.join(start.path, METADATA)):
        raise ConfigError(f"{start.named_by} = {start.path!r}: {_what_is_there(start.path)}")


def _what_is_there(folder: str) -> str:
    """What may be meant by a folder that is no checkpoint of torch's."""
    if steps := complete_steps(folder):
        return f"name one of the checkpoints in it, e.g. {list(steps.values())[-1]!r}."
    if any(name.endswith(".safetensors") for name in os.listdir(folder)):
        return "it holds safetensors; set checkpoint.initial_load_in_hf = true."
    return f"it is no complete checkpoint, as it has no {METADATA}."
