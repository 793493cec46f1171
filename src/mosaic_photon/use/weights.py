"""The weights in a checkpoint, one tensor at a time, and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from mosaic_photon import stores
from mosaic_photon.checkpoints.contents import alone, missing_files, reader_with_metadata
from mosaic_photon.checkpoints.find import METADATA
from mosaic_photon.checkpoints.identity import NOT_THE_MODEL
from mosaic_photon.errors import ConfigError
from mosaic_photon.files import OWN, existing, made_folder
from mosaic_photon.names import human_size
from mosaic_photon.signals import Stopped, stop_signals


class Weights:
    """The weights in a TorchTitan checkpoint, read one at a time, whatever layout wrote them."""

    def __init__(self, folder: str) -> None:
        """Raises ConfigError: no checkpoint, a half-written or damaged one, or one without weights."""
        if not stores.is_file(stores.join(folder, METADATA)):
            raise ConfigError(
                f"{folder}: no whole checkpoint of TorchTitan here (no {METADATA}); name a step-N folder."
            )
        if faults := missing_files(folder):
            raise ConfigError(f"{folder} is damaged: {'; '.join(faults[:3])}.")
        self.folder = folder
        self._reader, metadata = reader_with_metadata(folder)
        self.stored: dict[str, TensorStorageMetadata] = {
            name: stored
            for name, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata) and not name.startswith(NOT_THE_MODEL)
        }
        if not self.stored:
            raise ConfigError(f"{folder} holds no weights of a model.")

    @property
    def bytes(self) -> int:
        """What all of them take."""
        return sum(stored.size.numel() * stored.properties.dtype.itemsize for stored in self.stored.values())

    def read(self, name: str) -> Tensor:
        """One whole tensor, in the dtype that it was saved in."""
        stored = self.stored[name]
        state = {name: torch.empty(stored.size, dtype=stored.properties.dtype)}
        self.read_into(state)
        return state[name]

    def read_into(self, state: dict[str, Tensor]) -> None:
        """Fill the tensors in place; they may be of another dtype."""
        with alone():
            load(state, storage_reader=self._reader, no_dist=True)


def check_new(where: str, out: str, needed: int) -> None:
    """The folder must not be there yet, and what goes into it must fit on its disk.

    Args:
        where: what the command calls it.
        needed: bytes.

    Raises:
        ConfigError: it is there, and not empty or the current one, or has no room.
    """
    target = Path(out)
    if os.path.exists(target) and (not target.is_dir() or any(target.iterdir()) or target.samefile(os.curdir)):
        raise ConfigError(f"{where} {out!r} is there already; name a folder that is not.")
    folder = existing(out)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(f"{where} {out!r} takes {human_size(needed)}, and {folder} has {human_size(free)} free.")


@contextmanager
def new_folder(where: str, out: str, needed: int) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when all is written; if that fails, nothing is left of it.

    Raises:
        ConfigError: as `check_new`, or what is written does not get onto the disk.
        Stopped: by SIGINT or SIGTERM.
    """
    check_new(where, out, needed)
    target = Path(os.path.abspath(out))
    part = target.with_name(f"{OWN}{target.name}.{os.getpid()}.part")
    try:
        with stop_signals(), made_folder(part.parent), _removed(part):
            part.mkdir()
            yield part
            os.replace(part, target)
    except (OSError, CheckpointException, SafetensorError) as error:
        cause = _beneath(error)
        if cause is None:
            raise
        if isinstance(cause, Stopped):
            raise cause from None
        raise ConfigError(f"{where} {out!r} cannot be written: {getattr(cause, 'strerror', None) or cause}.") from error


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Nothing is left of the folder afterwards."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _beneath(error: BaseException) -> BaseException | None:
    """The disk's complaint or the stop that torch's own exceptions hide: of a rank, and of what came of it."""
    found: BaseException | None = error
    if isinstance(error, CheckpointException):
        found = next(iter(error.failures.values()))[0]
    while found is not None and not isinstance(found, OSError | SafetensorError | Stopped):
        found = found.__cause__ or found.__context__
    return found
