"""What a checkpoint holds: names, shapes and small states, read without a process group."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_photon import stores
from mosaic_photon.checkpoints.find import METADATA, Start
from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

    from mosaic_photon.job.tables import MosaicJobConfig

Shapes = Mapping[str, tuple[int, ...] | None]
"""Name -> shape; None for what is no tensor."""
DATA_STATE = "dataloader.mosaic_dataloader"
SCHEDULE_POSITION = "lr_scheduler.last_epoch"
BEGIN_ANEW = ("callbacks.", "generators.", "streams.")
"""What the names of states begin with that a checkpoint may lack: callbacks', random generators', streams' counts."""


def reader_of(folder: str) -> FileSystemReader:
    """Torch's reader of a folder or of a URL."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    if not stores.is_url(folder):
        return FileSystemReader(folder)
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

    stores.open_store(folder)  # by which fsspec knows the endpoint
    return FsspecReader(folder)


def read_metadata(folder: str) -> Metadata:
    """A checkpoint's `.metadata`; it is a pickle, so checkpoints are trusted input, as they are for torch.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    from mosaic_photon.compat import newer_checkpoints

    newer_checkpoints.apply()
    try:
        read = reader_of(folder).read_metadata
        return stores.ask(folder, "reading", read) if stores.is_url(folder) else read()
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError) as error:
        raise ConfigError(f"{stores.join(folder, METADATA)} cannot be read ({error}).") from error


def reader_with_metadata(folder: str) -> tuple[FileSystemReader, Metadata]:
    """Torch's reader and the checkpoint's `.metadata`, which it would read anew for each load. Raises ConfigError."""
    reader, metadata = reader_of(folder), read_metadata(folder)
    vars(reader)["read_metadata"] = lambda: metadata
    return reader, metadata


def shape_of(stored: Any) -> tuple[int, ...] | None:
    """The shape of an entry of `Metadata.state_dict_metadata`; None for one that is no tensor."""
    return tuple(stored.size) if hasattr(stored, "size") else None


def read_shapes(folder: str) -> Shapes:
    """Every name in a checkpoint of torch's."""
    return {name: shape_of(stored) for name, stored in read_metadata(folder).state_dict_metadata.items()}


def hf_shapes(folder: str) -> Shapes:
    """Every tensor in a folder's safetensors, from their headers, but for rotations' frequencies, which are no weights.

    Raises:
        ConfigError: a file that is damaged.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...] | None] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if not name.endswith("inv_freq")]  # noqa: SIM118
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path} cannot be read ({error}).") from None
    return shapes


def missing_files(folder: str) -> list[str]:
    """Files that a checkpoint's `.metadata` names and that are not there whole, each with what is wrong."""
    ends: dict[str, int] = {}
    for stored in read_metadata(folder).storage_data.values():
        ends[stored.relative_path] = max(ends.get(stored.relative_path, 0), stored.offset + stored.length)
    there = stores.sizes(folder)
    found = [f"{name} is missing" for name in ends if name not in there]
    return found + [
        f"{name} has {there[name]} bytes of {end}" for name, end in ends.items() if there.get(name, end) < end
    ]


def read_values(folder: str, *keys: str) -> list[Any]:
    """Values that are no tensors, e.g. a data state's JSON text; None where the checkpoint has no such key."""
    from torch.distributed.checkpoint.state_dict_loader import load

    if not stores.is_file(stores.join(folder, METADATA)):
        return [None] * len(keys)
    reader, metadata = reader_with_metadata(folder)
    state = {key: "" for key in keys if key in metadata.state_dict_metadata}
    if state:
        with alone():
            load(state, storage_reader=reader, no_dist=True)
    return [state.get(key) for key in keys]


@contextmanager
def alone() -> Iterator[None]:
    """Within it, torch does not warn that it reads or writes a checkpoint in this process alone (`no_dist`)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def saved_position(start: Start, job: MosaicJobConfig) -> tuple[str | None, int]:
    """Where the job will go on: the JSON text of its data's state, and its schedule's position, in optimizer steps.

    (None, 0) where it begins with its data's first sample.
    """
    excluded = job.checkpoint.exclude_from_loading
    if start.path is None or start.model_only or start.hf or "dataloader" in excluded:
        return None, 0
    state, steps = read_values(start.path, DATA_STATE, SCHEDULE_POSITION)
    return state, 0 if "lr_scheduler" in excluded else int(steps or 0)
