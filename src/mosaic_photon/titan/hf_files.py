"""Into which files the last save in Hugging Face's format puts a model's tensors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torchtitan.protocols import BaseStateDictAdapter
from torchtitan.tools.logging import logger

from mosaic_photon.checkpoints.find import HF_INDEX


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
