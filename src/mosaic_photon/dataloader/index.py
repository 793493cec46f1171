"""What a stream's `index.json` says: its shards, their files, columns and hashes. No torch, no Streaming."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mosaic_photon.errors import ConfigError

INDEX = "index.json"
LOCKS = ".locks"
RESERVED = {INDEX, LOCKS, "limit"}
"""Names that the cache gives to files of its own, or to their locks."""


class DataError(ConfigError):
    """Data that is missing, damaged or not to be trusted. The message says which file, what is wrong, what to do."""


@dataclass(frozen=True)
class ShardFile:
    """One file of a shard, relative to the stream's folder; `hashes` maps algorithm to hex digest."""

    basename: str
    bytes: int
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class Column:
    """A column of an MDS shard; `size` is its bytes per sample, None if they vary."""

    name: str
    encoding: str
    size: int | None


@dataclass(frozen=True)
class Shard:
    """An MDS shard: `samples` samples in one raw file, which may be stored compressed as `zip`."""

    samples: int
    columns: tuple[Column, ...]
    compression: str | None
    raw: ShardFile
    zip: ShardFile | None

    @property
    def stored(self) -> ShardFile:
        """The file that a remote holds."""
        return self.zip or self.raw

    @property
    def max_bytes(self) -> int:
        """Bytes on disk while the raw file is unpacked from the compressed one."""
        return self.raw.bytes + (self.zip.bytes if self.zip else 0)


def read_index(folder: Path, allow_unsafe_types: bool = False) -> list[Shard]:
    """The shards of the MDS dataset in `folder`. Raises DataError if it is none, is damaged or points outside."""
    path = folder / INDEX
    try:
        return parse_index(path.read_bytes(), str(path), allow_unsafe_types)
    except FileNotFoundError as error:
        found = f"; the folder holds {_some_names(folder)}" if folder.is_dir() else "; there is no such folder"
        raise DataError(f"{path}: not found, so {folder} is no MDS dataset{found}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error


def parse_index(data: bytes, where: str, allow_unsafe_types: bool = False) -> list[Shard]:
    """Parse and check the content of an index.json. `where` names it in messages."""
    try:
        index = json.loads(data)
        if index["version"] != 2:
            raise DataError(f"{where}: MDS version {index['version']!r} is not supported, only version 2")
        shards = [_shard(entry, where, number) for number, entry in enumerate(index["shards"])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: damaged or no MDS index ({type(error).__name__}: {error})") from error
    if not sum(shard.samples for shard in shards):
        raise DataError(f"{where}: the dataset is empty")
    unsafe = {column.name for shard in shards for column in shard.columns if column.encoding.split(":")[0] == "pkl"}
    if unsafe and not allow_unsafe_types:
        raise DataError(
            f"{where}: column {min(unsafe)!r} is pickled (pkl), and reading it can run any code hidden in the data;"
            " if you trust its origin, set allow_unsafe_types = true"
        )
    return shards


def _shard(entry: dict[str, Any], where: str, number: int) -> Shard:
    if entry["format"] != "mds":
        raise DataError(f"{where}: shard {number} has format {entry['format']!r}; only mds is supported")
    names, encodings, sizes = entry["column_names"], entry["column_encodings"], entry["column_sizes"]
    columns = tuple(
        Column(str(name), str(encoding), None if size is None else int(size))
        for name, encoding, size in zip(names, encodings, sizes, strict=True)
    )
    raw = _file(entry["raw_data"], where)
    packed = _file(entry["zip_data"], where) if entry.get("zip_data") else None
    if bool(entry.get("compression")) != bool(packed):
        raise DataError(f"{where}: shard {number} is compressed but has no compressed file, or the reverse")
    samples = int(entry["samples"])
    if samples < 0 or raw.bytes < 0:
        raise DataError(f"{where}: shard {number} has a negative size")
    return Shard(samples, columns, entry.get("compression") or None, raw, packed)


def _file(entry: dict[str, Any], where: str) -> ShardFile:
    basename = str(entry["basename"])
    path = PurePosixPath(basename)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in basename or "\0" in basename:
        raise DataError(
            f"{where}: shard file {basename!r} lies outside the dataset's folder; the index is not to be trusted"
        )
    if path.parts[0] in RESERVED or basename.endswith(".part"):
        raise DataError(f"{where}: shard file {basename!r} has a name that the cache uses itself; rename the shard")
    return ShardFile(basename, int(entry["bytes"]), dict(entry.get("hashes") or {}))


def _some_names(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
