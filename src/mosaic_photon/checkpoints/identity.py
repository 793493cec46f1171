"""Whether a checkpoint is one of this job: its names and shapes beside those that the job will ask for.

The model is built on the meta device, so nothing is allocated; what an optimizer keeps is asked of one with a parameter
of two elements a dimension.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn

from mosaic_photon import stores
from mosaic_photon.checkpoints.contents import BEGIN_ANEW, DATA_STATE, Shapes, hf_shapes, read_shapes
from mosaic_photon.checkpoints.find import METADATA, Start
from mosaic_photon.checkpoints.hf import in_hf_format
from mosaic_photon.compat.cpu_device_type import ON_CPU
from mosaic_photon.errors import ConfigError, ask_upstream
from mosaic_photon.optimizers.catalog import choose
from mosaic_photon.optimizers.container import make_state
from mosaic_photon.optimizers.groups import trainable
from mosaic_photon.titan.config import TORCH_DTYPE_MAP
from mosaic_photon.titan.tools import device_type

if TYPE_CHECKING:
    from mosaic_photon.job.tables import MosaicJobConfig
    from mosaic_photon.titan.spec import TrainSpec

STATE, OPTIONS = "optimizer.state.", "optimizer.param_groups."
POSITION = ("train_state.step", "train_state.ntokens_seen", "lr_scheduler.last_epoch")
NOT_THE_MODEL = ("optimizer.", "lr_scheduler.", "dataloader.", "train_state.", *BEGIN_ANEW)
STATES = ("model", *(name.rstrip(".") for name in NOT_THE_MODEL))
"""What `checkpoint.exclude_from_loading` may name."""


def only_model(path: str) -> bool:
    """Whether a checkpoint holds nothing but weights, in torch's format or in Hugging Face's."""
    if not stores.is_file(stores.join(path, METADATA)):
        return True
    return not any(name.startswith(NOT_THE_MODEL) for name in read_shapes(path))


def shapes_of(state: Mapping[str, Any]) -> Shapes:
    """Name -> shape of a state dict's tensors."""
    return {name: tuple(value.shape) if torch.is_tensor(value) else None for name, value in state.items()}


def mismatches(start: Start, job: MosaicJobConfig, spec: TrainSpec, model: nn.Module) -> list[str]:
    """A line for each way in which the checkpoint that the job begins from is not one of this job; none if it is.

    Args:
        model: the job's, on the meta device.

    Raises:
        ConfigError: the checkpoint cannot be read, or nothing in it is of this job's model.
    """
    assert start.path is not None
    if start.hf:
        named, lost = in_hf_format(job, spec, model)
        theirs = hf_shapes(start.path)
        lines = compare_models(start.path, theirs, shapes_of(named))
        return lines + ([f"TorchTitan does not know {names_of(lost)} in Hugging Face's format"] if lost else [])
    shapes = read_shapes(start.path)
    excluded = () if start.model_only else tuple(job.checkpoint.exclude_from_loading)
    lines = []
    if "model" not in excluded:
        wanted = shapes_of(model.state_dict())
        theirs = {name: shape for name, shape in shapes.items() if not name.startswith(NOT_THE_MODEL)}
        lines += compare_models(start.path, theirs, wanted)
    if start.model_only:
        return lines
    if "optimizer" not in excluded:
        lines += compare_optimizers(shapes, job, model)
    return lines + compare_positions(shapes, excluded)


def compare_models(path: str, theirs: Shapes, wanted: Shapes) -> list[str]:
    """Names and shapes of a checkpoint's model beside the job's."""
    if not theirs.keys() & wanted.keys():
        raise ConfigError(f"{path} is not a checkpoint of this model: it has {names_of(theirs) or 'no weights'}.")
    lines = []
    if missing := wanted.keys() - theirs.keys():
        lines.append(f"it lacks {names_of(missing)} of the job's model")
    if surplus := theirs.keys() - wanted.keys():
        lines.append(f"it has {names_of(surplus)}, which the job's model lacks")
    other = [name for name, shape in wanted.items() if name in theirs and theirs[name] != shape]
    if other:
        name, more = other[0], f" (and {len(other) - 1} more differ)" if len(other) > 1 else ""
        lines.append(f"{name} is {list(theirs[name] or ())} in it and {list(wanted[name] or ())} in the job{more}")
    return lines


def compare_optimizers(shapes: Shapes, job: MosaicJobConfig, model: nn.Module) -> list[str]:
    """What the job's optimizer keeps for each parameter beside what the checkpoint has of it."""
    kept = kept_by_optimizer(job)
    named = trainable(model)
    wanted = {f"{STATE}{name}.{key}" for name, p in named for key in kept(p.dim()).states}
    options = {f"{OPTIONS}{name}.{key}" for name, p in named for key in kept(p.dim()).options}
    theirs = {key for key in shapes if key.startswith(STATE)}
    here = tuple(f"{STATE}{name}." for name, _ in named)
    lines = []
    if not theirs:
        return ["it has no state of an optimizer"]
    if missing := _last_parts((wanted | options) - shapes.keys()):
        lines.append(f"it has no {missing} of the job's optimizer {job.optimizer.name}")
    if surplus := _last_parts({key for key in theirs - wanted if key.startswith(here)}):
        lines.append(f"it has {surplus}, which the job's optimizer {job.optimizer.name} does not keep")
    return lines


@dataclass(frozen=True)
class Kept:
    """What an optimizer keeps for a parameter."""

    states: set[str]
    options: set[str]
    """Of the parameter's group."""
    copies: int
    """States of the parameter's own shape."""


def kept_by_optimizer(job: MosaicJobConfig) -> Callable[[int], Kept]:
    """What the job's optimizer keeps, by a parameter's dimensions.

    Raises:
        ConfigError: it does not accept its arguments.
    """
    choice = choose(job.optimizer)
    device = "cpu" if ON_CPU else torch.device(device_type, int(os.environ.get("LOCAL_RANK", "0")))

    @functools.cache
    def kept(dimensions: int) -> Kept:
        parameter = nn.Parameter(torch.zeros((2,) * dimensions, device=device))
        refused = f"[optimizer] {choice.name} does not accept its arguments"
        optimizer = ask_upstream(refused, (Exception,), choice.cls, [{"params": [parameter]}], **choice.kwargs)
        make_state(optimizer)
        state = optimizer.state[parameter]
        copies = sum(torch.is_tensor(value) and value.shape == parameter.shape for value in state.values())
        options = {*optimizer.param_groups[0], "initial_lr"} - {"params"}
        return Kept(set(state), options, copies)

    return kept


def bytes_of_checkpoint(job: MosaicJobConfig, model: nn.Module) -> int:
    """What a whole checkpoint takes: weights, and the optimizer's states of their shapes."""
    kept = kept_by_optimizer(job)
    bytes_each = TORCH_DTYPE_MAP[job.training.dtype].itemsize
    named = trainable(model)
    states = sum(p.numel() * kept(p.dim()).copies for _, p in named)
    return bytes_each * (states + sum(tensor.numel() for tensor in model.state_dict().values()))


def compare_positions(shapes: Shapes, excluded: Iterable[str]) -> list[str]:
    """Where the run and its data are; callbacks that a checkpoint does not know begin anew."""
    lines = []
    missing = [key for key in POSITION if key not in shapes and not key.startswith(tuple(excluded))]
    if missing:
        lines.append(f"it does not say where the run is ({', '.join(missing)})")
    if "dataloader" not in excluded and DATA_STATE not in shapes:
        lines.append(
            "it was written with another data loader and does not say where its data is; "
            "--checkpoint.exclude_from_loading=dataloader begins with the first sample"
        )
    return lines


def names_of(names: Iterable[str]) -> str:
    """Tensors by name, those of a layer together: `layers.2.* (9), output.weight`; at most four."""
    groups: dict[str, int] = {}
    for name in names:
        layer = re.match(r".*?\.\d+\.", name)
        key = f"{layer[0]}*" if layer else name
        groups[key] = groups.get(key, 0) + 1
    shown = [f"{key} ({count} tensors)" if key.endswith("*") else key for key, count in sorted(groups.items())]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _last_parts(keys: Iterable[str]) -> str:
    return ", ".join(sorted({key.rpartition(".")[2] for key in keys}))
