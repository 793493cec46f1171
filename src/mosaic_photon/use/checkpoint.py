"""A checkpoint's weights as a model of its job, whatever the layout that it was saved in.

Names of tensors are a job's on each release of TorchTitan (`output.weight`, `layers.0.attention.wq.weight`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mosaic_photon import stores
from mosaic_photon.checkpoints import description
from mosaic_photon.checkpoints.checks import as_lines
from mosaic_photon.checkpoints.find import METADATA, Start, checkpoint_folder, step_folders
from mosaic_photon.checkpoints.identity import mismatches
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.models.model_args import build_on_meta
from mosaic_photon.tokenizers import read_tokenizer, special_id
from mosaic_photon.train_spec import load_job_model, spec_of_job
from mosaic_photon.use.weights import Weights


@dataclass(frozen=True)
class JobModel:
    """The model that a job trains, for one process."""

    path: str
    """Of the job config."""
    job: MosaicJobConfig
    """Its layout is one process's."""
    spec: Any
    args: Any
    """Model args, as the job's trainer has them: with `[model.overrides]`, `[mup]` and the sequence length."""
    meta: nn.Module
    """On the meta device: names and shapes, on each release those of the job's checkpoints."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what a checkpoint has of the model, parameters and buffers."""
        return {name: tuple(tensor.shape) for name, tensor in self.meta.state_dict().items()}


def job_model(path: str, flags: Sequence[str] = ()) -> JobModel:
    """The model of the job config at `path`, with the flags that win over it.

    Raises:
        ConfigError: a job config that does not load, or a model that cannot be built.
    """
    job, _ = load_job_model(path, flags)
    job.parallelism = type(job.parallelism)()
    job.checkpoint.enable = False  # what the job begins from, and how it ends, does not matter here
    spec = spec_of_job(job)
    job.mosaic.dataloader = {"name": "text", "dataset": between_documents(job.model.hf_assets_path)}
    args = copy.deepcopy(spec.model_args[job.model.flavor])
    meta = build_on_meta(job, spec)
    args.update_from_config(job)
    return JobModel(path, job, spec, args, meta)


def between_documents(tokenizer: str) -> dict[str, int]:
    """The tokenizer's end token, or else its begin token, as a data config would name it; empty for none."""
    vocabulary = read_tokenizer(tokenizer, "model.hf_assets_path")
    ids = {f"{role}_token_id": special_id(tokenizer, role, vocabulary) for role in ("eos", "bos")}
    return dict([(name, token) for name, token in ids.items() if token is not None][:1])


def find_checkpoint(model: JobModel, path: str | None = None) -> str:
    """The folder of one whole checkpoint.

    Args:
        path: a checkpoint, or a folder of them, of which the newest whole one counts; None: the job's own.

    Raises:
        ConfigError: there is none.
    """
    folder = path or checkpoint_folder(model.job)
    if is_whole(folder):
        return folder
    if not stores.is_folder(folder):
        raise ConfigError(f"{folder}: there is no such folder of checkpoints.")
    if steps := whole_steps(folder):
        return steps[max(steps)]
    if any(name.endswith(".safetensors") for name in stores.names(folder)):
        raise ConfigError(
            f"{folder} holds safetensors, not a checkpoint of a run: mosaic-photon import makes one of it."
            if stores.is_file(stores.join(folder, "config.json"))
            else f"{folder} holds safetensors (checkpoint.last_save_in_hf): name the run's checkpoint before it."
        )
    raise ConfigError(f"{folder}: there is no whole checkpoint in it (a folder step-N with {METADATA}).")


def whole_steps(folder: str) -> dict[int, str]:
    """The run's own checkpoints in a folder, not those in Hugging Face's format, oldest first."""
    return {step: path for step, path in step_folders(folder).items() if is_whole(path)}


def is_whole(folder: str) -> bool:
    """Whether all of a checkpoint of a run's own was written."""
    return stores.is_file(stores.join(folder, METADATA))


def check_weights(model: JobModel, folder: str) -> Weights:
    """The checkpoint must be whole, have the weights of the job's model, and compute what that computes.

    Raises:
        ConfigError: naming what differs.
    """
    weights = Weights(folder)
    differs = mismatches(Start(folder, model_only=True), model.job, model.spec, model.meta)
    changed = description.changes(folder, model.args) or []
    hint = "the job's [model], [model.overrides] and [mup] say which model it is"
    if changed and not model.job.mosaic.allow_model_change:
        differs += changed
        hint += "; its weights are taken as another function with [mosaic] allow_model_change = true"
    if differs:
        raise ConfigError(f"{folder} is of another model than the job {model.path}:\n{as_lines(differs)}\n{hint}.")
    return weights
