"""What TorchTitan's adapters make of a model in Hugging Face's format: names, files, and what they leave out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from mosaic_photon.checkpoints.find import HF_INDEX
from mosaic_photon.errors import ConfigError
from mosaic_photon.titan.spec import BaseStateDictAdapter
from mosaic_photon.titan.tools import logger

if TYPE_CHECKING:
    from mosaic_photon.job.tables import MosaicJobConfig
    from mosaic_photon.titan.spec import TrainSpec


def in_hf_format(job: MosaicJobConfig, spec: TrainSpec, model: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """The model's tensors under Hugging Face's names, and parameters that are lost on the way there and back.

    Args:
        model: on the meta device.

    Raises:
        ConfigError: TorchTitan's adapter does not know one of the names.
    """
    adapter = spec.state_dict_adapter(spec.model_args[job.model.flavor], None)
    state = get_model_state_dict(model)
    try:
        named = adapter.to_hf(state)
    except KeyError as error:
        raise ConfigError(
            f"checkpoint: {job.model.name} {job.model.flavor} has no Hugging Face format: TorchTitan's adapter does "
            f"not know {error}."
        ) from None
    back = adapter.from_hf(dict(named))
    return named, [name for name, _ in model.named_parameters() if name in state and name not in back]


def check_index(job: MosaicJobConfig, spec: TrainSpec) -> None:
    """The index of weights beside the tokenizer, which TorchTitan's adapter reads in every job, must be one."""
    path = os.path.join(job.model.hf_assets_path, HF_INDEX)
    if spec.state_dict_adapter is None or not os.path.isfile(path):
        return
    try:
        with open(path) as file:
            files = set(json.load(file)["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"model.hf_assets_path: {path} is not an index of weights ({error!r}).") from None
    for name in files:
        if not re.search(r"\d", str(name)):
            raise ConfigError(
                f"model.hf_assets_path: {path} names the file {name!r}, and TorchTitan takes names with a number only. "
                "One file needs no index: remove it."
            )


def check_last_save(job: MosaicJobConfig, spec: TrainSpec, model: nn.Module) -> None:
    """Every parameter must have a place in the Hugging Face format that the job ends in."""
    _, lost = in_hf_format(job, spec, model)
    if lost:
        raise ConfigError(
            f"checkpoint.last_save_in_hf = true: TorchTitan leaves {len(lost)} parameters of {job.model.name} "
            f"{job.model.flavor} out of Hugging Face's format, first {lost[0]}; set it to false."
        )


def fit_files(adapter: BaseStateDictAdapter | None, state: dict[str, Any]) -> None:
    """Let the adapter's division into files be one of this model's tensors. Collective.

    TorchTitan takes the index in `hf_assets_path` as it is: names that it lacks end the last save, and names that the
    model lacks leave files that nobody can read.

    Args:
        adapter: TorchTitan's, of a job with `last_save_in_hf`.
        state: the model's state dict on this rank; a pipeline stage's has its own part.
    """
    if adapter is None or not adapter.fqn_to_index_mapping:
        return
    shapes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shapes, {name: tuple(tensor.shape) for name, tensor in state.items()})
    whole = {name: torch.empty(shape, device="meta") for part in shapes for name, shape in part.items()}
    adapter.fqn_to_index_mapping = files_for(adapter.to_hf(whole), adapter.fqn_to_index_mapping)
    if adapter.fqn_to_index_mapping is None:
        logger.warning(f"{HF_INDEX} in model.hf_assets_path is of another model: the last save is one file.")


def files_for(names: Collection[str], index: dict[str, int]) -> dict[str, int] | None:
    """Name -> number of its file, from 1 without gaps; None, which is one file, where the index lacks a name."""
    files = {name: index[name] for name in names if name in index}
    if len(files) < len(names):
        return None
    numbers = {old: new for new, old in enumerate(sorted(set(files.values())), 1)}
    return {name: numbers[old] for name, old in files.items()}
