"""The mean of checkpoints' weights: a checkpoint of a model alone, made one tensor at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save

from mosaic_photon import stores
from mosaic_photon.checkpoints import description
from mosaic_photon.checkpoints.contents import alone
from mosaic_photon.checkpoints.find import STEP_FOLDER
from mosaic_photon.checkpoints.identity import names_of
from mosaic_photon.errors import ConfigError
from mosaic_photon.use.weights import Weights, new_folder


class _Mean(DefaultSavePlanner):
    """Saves the mean of several checkpoints' tensors, each computed when it is written."""

    def __init__(self, sources: Sequence[Weights], weights: Sequence[float]) -> None:
        super().__init__()
        self._sources, self._weights = sources, weights

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return mean_of((source.read(index.fqn) for source in self._sources), self._weights)


def mean_of(tensors: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean, summed in fp32 (of fp64 tensors in fp64), in the tensors' dtype; of integers, the last ones.

    Args:
        tensors: of one shape; one at a time is held.
        weights: one each, of any sum.
    """
    total: Tensor | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        if not tensor.is_floating_point():
            total = tensor
            continue
        part = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * weight
        total = part if total is None else total.add_(part)
    assert total is not None
    return total.div_(sum(weights)).to(tensor.dtype) if tensor.is_floating_point() else total


def weights_of(rule: str, count: int) -> list[float]:
    """Each checkpoint's weight, oldest first.

    Args:
        rule: "equal", or "ema:D": the mean begins as the oldest, and each newer one moves it by 1 - D.

    Raises:
        ConfigError: another rule.
    """
    if rule == "equal":
        return [1.0] * count
    kind, _, text = rule.partition(":")
    try:
        decay = float(text)
    except ValueError:
        decay = -1.0
    if kind != "ema" or not 0 < decay < 1:
        raise ConfigError(f"--weights {rule!r}: give equal, or ema:D with D between 0 and 1, e.g. ema:0.9.")
    return [decay ** (count - 1), *((1 - decay) * decay ** (count - 1 - number) for number in range(1, count))]


def by_age(folders: Sequence[str]) -> list[str]:
    """The checkpoints, oldest first where all are named step-N, which a shell sorts by letters; else as given."""
    steps = [STEP_FOLDER.fullmatch(os.path.basename(os.path.normpath(folder))) for folder in folders]
    numbered = [(int(step[1]), folder) for step, folder in zip(steps, folders, strict=True) if step]
    return [folder for _, folder in sorted(numbered)] if all(steps) else list(folders)


def average(folders: Sequence[str], out: str, weights: Sequence[float]) -> None:
    """Write the mean of the checkpoints' weights into `out`, whole or not at all.

    Args:
        folders: TorchTitan's checkpoints, of one model; each may be of another layout.
        out: a folder that is not there yet.
        weights: one each.

    Raises:
        ConfigError: no such checkpoints, or of different models; `out` is there, or has no room.
    """
    sources = [Weights(folder) for folder in folders]
    for source in sources[1:]:
        check_same(sources[0], source)
    state = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype, device="meta")
        for name, stored in sources[-1].stored.items()
    }
    with new_folder("--out", out, sources[-1].bytes) as part, alone():
        written = stores.join(folders[-1], description.FILE)
        if stores.is_file(written):
            stores.write(str(part / description.FILE), stores.read(written))
        save(state, storage_writer=FileSystemWriter(part), planner=_Mean(sources, weights), no_dist=True)


def check_same(one: Weights, other: Weights) -> None:
    """Raise ConfigError, with what differs, where two checkpoints are not of one model."""
    lines = [
        f"{theirs.folder} lacks {names_of(missing)}"
        for ours, theirs in ((one, other), (other, one))
        if (missing := ours.stored.keys() - theirs.stored.keys())
    ]
    lines += [
        f"{name} is {list(stored.size)} in the first and {list(other.stored[name].size)} in the second"
        for name, stored in one.stored.items()
        if name in other.stored and stored.size != other.stored[name].size
    ][:3]
    lines += description.differences(one.folder, other.folder)
    if lines:
        listed = "\n  ".join(lines)
        raise ConfigError(f"{one.folder} and {other.folder} are of different models:\n  {listed}")
