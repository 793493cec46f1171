"""Which checkpoint a job begins from: judged from names alone, without a process group, alike on every rank.

A checkpoint is complete when the file that is written last is there: `.metadata`, which torch renames into place when
all ranks have written theirs, or the index of a model saved in Hugging Face's format. A folder without it is half
written: it is neither taken nor counted nor removed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mosaic_photon import stores
from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    from mosaic_photon.job.tables import MosaicJobConfig

STEP_FOLDER = re.compile(r"step-(0|[1-9]\d*)")
METADATA = ".metadata"
HF_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Start:
    """What a job begins from."""

    path: str | None = None
    """The folder to load, or its URL. None: nothing, the weights are drawn."""
    step: int = -1
    """Of one of the job's own checkpoints; -1: `path` is not one of them. 0 is a seed checkpoint."""
    hf: bool = False
    """`path` is a folder of safetensors in Hugging Face's format."""
    model_only: bool = False
    """Only the model is taken from it."""
    named_by: str = ""
    """The setting that names `path`, '' for one of the job's own."""

    def __str__(self) -> str:
        if self.path is None:
            return "Begins anew: there is no complete checkpoint"
        if self.named_by:
            return f"Begins from {self.path} ({self.named_by}): the job has no complete checkpoint of its own"
        return f"Begins from the seed checkpoint {self.path}" if self.step == 0 else f"Resumes from {self.path}"


def checkpoint_folder(job: MosaicJobConfig) -> str:
    """The folder of the job's own checkpoints, or its URL."""
    folder = stores.join(job.job.dump_folder, job.checkpoint.folder)
    return folder.rstrip("/") if stores.is_url(folder) else folder


def is_complete(folder: str) -> bool:
    """Whether all of a checkpoint was written."""
    return any(stores.is_file(stores.join(folder, name)) for name in (METADATA, HF_INDEX))


def step_folders(folder: str) -> dict[int, str]:
    """Step -> its path, of all folders `step-N`, half-written ones too; ascending. Other names are not TorchTitan's."""
    found = {int(match[1]): name for name in stores.names(folder) if (match := STEP_FOLDER.fullmatch(name))}
    return {step: stores.join(folder, found[step]) for step in sorted(found)}


def complete_steps(folder: str) -> dict[int, str]:
    """Step -> its path, of the checkpoints in `folder` that are complete; ascending."""
    return {step: path for step, path in step_folders(folder).items() if is_complete(path)}


def find_start(job: MosaicJobConfig) -> Start:
    """The checkpoint `load_step`, else the newest complete one, else the initial weights, else nothing.

    Raises:
        ConfigError: `load_step` is missing or half-written.
    """
    checkpoint = job.checkpoint
    if not checkpoint.enable or checkpoint.create_seed_checkpoint:
        return Start()
    folder = checkpoint_folder(job)
    folders, step = step_folders(folder), checkpoint.load_step
    # The newest first: each that is looked at is a request of each rank, where they are in a store.
    asked = reversed(folders) if step == -1 else [step]
    found = next((step for step in asked if step in folders and is_complete(folders[step])), None)
    if found is not None:
        return Start(folders[found], found, model_only=found == 0)
    if step != -1:
        raise ConfigError(_no_such_step(step, folder, list(complete_steps(folder))))
    model_only, hf = checkpoint.initial_load_model_only, checkpoint.initial_load_in_hf
    if checkpoint.initial_load_path:
        return Start(checkpoint.initial_load_path, -1, hf, model_only, "checkpoint.initial_load_path")
    if hf:
        return Start(job.model.hf_assets_path, -1, hf, model_only, "model.hf_assets_path")
    return Start()


def _no_such_step(step: int, folder: str, complete: list[int]) -> str:
    half = stores.is_folder(stores.join(folder, f"step-{step}"))
    what = f"{folder}/step-{step} is half-written" if half else f"there is no such checkpoint in {folder}"
    have = f"complete are {', '.join(map(str, complete))}" if complete else "it has no complete one"
    return f"checkpoint.load_step = {step}: {what} ({have})."
