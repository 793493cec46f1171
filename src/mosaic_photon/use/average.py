"""The mean of checkpoints' weights: a checkpoint of a model alone, made one tensor at a time."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from mosaic_photon.checkpoints import description
from mosaic_photon.checkpoints.contents import missing_files, read_metadata
from mosaic_photon.checkpoints.find import METADATA, STEP_FOLDER
from mosaic_photon.checkpoints.identity import NOT_THE_MODEL, names_of
from mosaic_photon.errors import ConfigError
from mosaic_photon.files import OWN, existing
from mosaic_photon.names import human_size


class Weights:
    """The weights in a TorchTitan checkpoint, read one at a time, whatever layout wrote them."""

    def __init__(self, folder: str) -> None:
        """Raises ConfigError: no checkpoint, a half-written or damaged one, or one without weights."""
        if not os.path.isfile(os.path.join(folder, METADATA)):
            raise ConfigError(
                f"{folder}: no whole checkpoint of TorchTitan here (no {METADATA}); name a step-N folder."
            )
        if faults := missing_files(folder):
            raise ConfigError(f"{folder} is damaged: {'; '.join(faults[:3])}.")
        self.folder, self._reader = folder, _Reader(folder)
        self.stored: dict[str, TensorStorageMetadata] = {
            name: stored
            for name, stored in self._reader.read_metadata().state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata) and not name.startswith(NOT_THE_MODEL)
        }
        if not self.stored:
            raise ConfigError(f"{folder} holds no weights of a model.")

    def read(self, name: str) -> Tensor:
        """One whole tensor, in the dtype that it was saved in."""
        stored = self.stored[name]
        state = {name: torch.empty(stored.size, dtype=stored.properties.dtype)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # on purpose
            load(state, storage_reader=self._reader, no_dist=True)
        return state[name]


class _Reader(FileSystemReader):
    """Torch's, which would read the metadata again for each tensor."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._metadata = read_metadata(folder)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


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
    if not all(steps):
        return list(folders)
    return [
        folder
        for _, folder in sorted((int(step[1]), folder) for step, folder in zip(steps, folders, strict=True) if step)
    ]


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
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--out {out!r} is there already; name a folder that is not.")
    check_room(sources[-1], out)
    part = target.with_name(f"{OWN}{target.name}.{os.getpid()}.part")
    state = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype, device="meta")
        for name, stored in sources[-1].stored.items()
    }
    try:
        part.mkdir(parents=True)
        written = Path(folders[-1]) / description.FILE
        if written.is_file():
            shutil.copyfile(written, part / description.FILE)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            save(state, storage_writer=FileSystemWriter(part), planner=_Mean(sources, weights), no_dist=True)
        os.replace(part, target)
    except (OSError, CheckpointException) as error:
        cause = cause_of(error)
        if not isinstance(cause, OSError):
            raise
        raise ConfigError(f"--out {out!r} cannot be written: {cause.strerror or cause}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def cause_of(error: BaseException) -> BaseException:
    """What torch has wrapped in its own exception."""
    if isinstance(error, CheckpointException):
        return next(iter(error.failures.values()))[0]
    return error


def check_room(source: Weights, out: str) -> None:
    """A checkpoint of these weights must fit on the disk of `out`."""
    needed = sum(stored.size.numel() * stored.properties.dtype.itemsize for stored in source.stored.values())
    folder = existing(out)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(f"--out {out!r} takes {human_size(needed)}, and {folder} has {human_size(free)} free.")


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
