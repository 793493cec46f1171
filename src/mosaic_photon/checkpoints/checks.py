"""What is to be loaded must be there and fit the job; what is to be saved must be possible."""

import shutil

import torch.nn as nn

from mosaic_photon import stores
from mosaic_photon.checkpoints import description
from mosaic_photon.checkpoints.contents import missing_files
from mosaic_photon.checkpoints.find import METADATA, Start, checkpoint_folder, complete_steps, find_start
from mosaic_photon.checkpoints.hf import check_index, in_hf_format
from mosaic_photon.checkpoints.identity import STATES, bytes_of_checkpoint, mismatches, only_model
from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.files import existing
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import Checkpoint, MosaicJobConfig
from mosaic_photon.names import human_size
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
    if (checkpoint.last_save_in_hf or checkpoint.initial_load_in_hf) and spec.state_dict_adapter is None:
        raise ConfigError(f"checkpoint: {job.model.name} has no Hugging Face format to save in or load from.")
    if checkpoint.last_save_in_hf:
        check_last_save(job, facts)
    for name in checkpoint.exclude_from_loading:
        if name not in STATES:
            raise ConfigError(f"checkpoint.exclude_from_loading: there is no state {name!r}.{nearest(name, STATES)}")
    check_start(job, facts)
    if not checkpoint.load_only and facts.rank == 0:
        check_room(job, facts.model)


def check_last_save(job: MosaicJobConfig, facts: Facts) -> None:
    """What the job ends in, in Hugging Face's format, must be the model, and all of it, on a file system."""
    if stores.is_url(job.checkpoint.folder):
        raise ConfigError(
            f"checkpoint.last_save_in_hf = true is not written to a store ({job.checkpoint.folder}); set it to false, "
            "and mosaic-photon export makes such a folder of a checkpoint."
        )
    if not job.checkpoint.last_save_model_only:
        raise ConfigError("checkpoint.last_save_in_hf = true needs last_save_model_only = true.")
    if job.checkpoint.create_seed_checkpoint:
        raise ConfigError("checkpoint.create_seed_checkpoint: a job cannot begin from one in Hugging Face's format.")
    _, lost = in_hf_format(job, facts.spec, facts.model)
    if lost:
        raise ConfigError(
            f"checkpoint.last_save_in_hf = true: TorchTitan leaves {len(lost)} parameters of {job.model.name} "
            f"{job.model.flavor} out of Hugging Face's format, first {lost[0]}; set it to false."
        )


def check_room(job: MosaicJobConfig, model: nn.Module) -> None:
    """The first checkpoint must fit on the disk."""
    if stores.is_url(checkpoint_folder(job)):
        return
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
        raise ConfigError(how_to_extend(start, job))
    if not start.hf and facts.rank == 0 and (faults := missing_files(start.path)):
        raise ConfigError(f"{start.path} is damaged: {'; '.join(faults[:3])}. Name another one, or move it away.")
    check_fits(start, job, facts)


def check_fits(start: Start, job: MosaicJobConfig, facts: Facts) -> None:
    """The checkpoint must be one of this job and compute what it computes, or what differs is said and allowed."""
    assert start.path is not None
    unfit = mismatches(start, job, facts.spec, facts.model)
    changed = None
    if start.model_only or "model" not in job.checkpoint.exclude_from_loading:
        changed = description.changes(start.path, getattr(facts.model, "model_args", facts.model_args))
        if changed is None and not start.hf and facts.rank == 0:
            logger.info(
                f"{start.path} does not say what its model computes (heads, positions, norms): taken as the job's."
            )
    refused, ways = [], []
    if unfit and not job.mosaic.allow_partial_load:
        refused += unfit
        ways.append("load what fits, and leave the rest as it is drawn, with --mosaic.allow_partial_load")
    if changed and not job.mosaic.allow_model_change:
        refused += changed
        ways.append("train its weights as another function, with --mosaic.allow_model_change")
    if refused:
        raise ConfigError(
            f"{start.path} is a checkpoint of another job:\n{as_lines(refused)}\nRestore the job's [model], "
            f"[model.overrides], [mup] and [optimizer], or {'; '.join(ways)}."
        )
    if unfit and facts.rank == 0:
        logger.warning(f"Of {start.path} only what fits the job is loaded:\n{as_lines(unfit)}")
    if changed and facts.rank == 0:
        logger.warning(f"The weights of {start.path} are trained as another function:\n{as_lines(changed)}")


def as_lines(items: list[str]) -> str:
    """One a line, indented."""
    return "\n".join(f"  {item}" for item in items)


def how_to_extend(start: Start, job: MosaicJobConfig) -> str:
    """What to do where a run was to go on from the weights alone that its last save has left."""
    steps = complete_steps(checkpoint_folder(job))
    whole = [step for step, path in steps.items() if step and not only_model(path)]
    newest = f"with checkpoint.load_step = {whole[-1]} from the newest whole one, or" if whole else "there is none, but"
    return (
        f"{start.path} holds only the model (checkpoint.last_save_model_only = true, TorchTitan's default), and a run "
        f"goes on from a whole checkpoint only: {newest} another job can begin, with its own job.dump_folder, from "
        f"checkpoint.initial_load_path = {start.path!r}. Next time, checkpoint.last_save_model_only = false saves all "
        "of the last step."
    )


def is_finished(job: MosaicJobConfig) -> bool:
    """Whether the job has trained all its steps and saved its model alone: the same command then has nothing to do."""
    start = find_start(job)
    return start.step >= job.training.steps and start.path is not None and only_model(start.path)


def check_initial_load(start: Start, checkpoint: Checkpoint) -> None:
    """TorchTitan's rules for the weights that a job without a complete checkpoint begins from."""
    assert start.path is not None
    if start.hf and stores.is_url(start.path):
        raise ConfigError(
            f"{start.named_by} = {start.path!r}: weights in Hugging Face's format are read from a folder of a file "
            "system; copy them there."
        )
    if not stores.is_folder(start.path):
        raise ConfigError(f"{start.named_by} = {start.path!r}: there is no such folder.")
    if start.hf and not start.model_only:
        raise ConfigError("checkpoint.initial_load_in_hf = true needs initial_load_model_only = true.")
    if checkpoint.initial_load_in_hf_quantized and not start.hf:
        raise ConfigError("checkpoint.initial_load_in_hf_quantized = true needs initial_load_in_hf = true.")
    if start.hf:
        if not any(name.endswith(".safetensors") for name in stores.names(start.path)):
            raise ConfigError(f"{start.named_by} = {start.path!r}: there are no .safetensors files in it.")
    elif not stores.is_file(stores.join(start.path, METADATA)):
        raise ConfigError(f"{start.named_by} = {start.path!r}: {_what_is_there(start.path)}")


def _what_is_there(folder: str) -> str:
    """What may be meant by a folder that is no checkpoint of torch's."""
    if steps := complete_steps(folder):
        return f"name one of the checkpoints in it, e.g. {list(steps.values())[-1]!r}."
    if any(name.endswith(".safetensors") for name in stores.names(folder)):
        return "it holds safetensors; set checkpoint.initial_load_in_hf = true."
    return f"it is no complete checkpoint, as it has no {METADATA}."
