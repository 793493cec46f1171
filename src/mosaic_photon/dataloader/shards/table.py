"""The shards of a dataset: indexes by columns, mapped from a file that is made once a node where they are large.

`Shard` objects are made when one is asked for; whoever needs something of all shards takes the columns.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.node.files import map_made
from mosaic_photon.dataloader.node.folder import folder_of
from mosaic_photon.dataloader.node.once import once_a_run
from mosaic_photon.dataloader.shards.files import names_in
from mosaic_photon.dataloader.shards.index import (
    INDEX,
    PACKED_COLUMNS,
    PACKED_VERSION,
    DataError,
    Header,
    Shard,
    ShardFile,
    digest_part,
    new_digest,
    pack_index,
)

SMALL_BYTES = 1 << 20
"""An index.json below this size is parsed by each process: that takes less than 50 ms."""
_DIGESTED_AT_ONCE = 4096


class Index(Sequence[Shard]):
    """The shards of one stream, by columns: int64 arrays of shape (shards,)."""

    def __init__(self, packed: bytes | mmap.mmap, count: int | None = None) -> None:
        """Of what `pack_index` made, in memory or in a mapped file; with `count` of its first shards only."""
        header_end = packed.find(b"\n") + 1
        header = msgspec.json.decode(packed[:header_end], type=Header)
        shards = header.shards
        columns = np.frombuffer(packed, np.int64, PACKED_COLUMNS * shards, header_end).reshape(PACKED_COLUMNS, shards)
        self.samples, self.raw_bytes, self.zip_bytes, self.kind, self._text_ends = columns[:, :count]
        self.kinds = header.kinds
        self.packed, self._text_begin = packed, header_end + columns.nbytes
        self.digest: str = header.digest if len(self) == shards else _digest(self)
        """Of the shards' sizes and hashes, so that data re-written under the same names is noticed."""

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...
    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self[n] for n in range(len(self))[number]]
        number = range(len(self))[number]
        kind = self.kinds[self.kind[number]]
        begin = self._text_begin + (int(self._text_ends[number - 1]) if number else 0)
        text = self.packed[begin : self._text_begin + int(self._text_ends[number])].decode()
        raw_name, zip_name, *hashes = text.split("\0")
        raw_hashes = dict(zip(kind.raw_hashes, hashes, strict=False))
        raw = ShardFile(raw_name, int(self.raw_bytes[number]), raw_hashes)
        packed = None
        if kind.zip_hashes is not None:
            zip_hashes = dict(zip(kind.zip_hashes, hashes[len(kind.raw_hashes) :], strict=True))
            packed = ShardFile(zip_name, int(self.zip_bytes[number]), zip_hashes)
        return Shard(int(self.samples[number]), kind.columns, kind.compression, raw, packed)

    def names(self) -> Iterator[tuple[str, str]]:
        """Of each shard's raw and compressed file, "" where it has none of the latter."""
        begin, text = 0, self.packed[self._text_begin :]
        for end in self._text_ends.tolist():
            raw, zipped, *_ = text[begin:end].split(b"\0", 2)
            yield raw.decode(), zipped.decode()
            begin = end

    def folders(self) -> set[str]:
        """What stands before the files' own names: "" or "train/"."""
        if self.packed.find(b"/", self._text_begin) < 0:
            return {""}
        return {name[: name.rfind("/") + 1] for names in self.names() for name in names if name}

    @property
    def stored_bytes(self) -> NDArray[np.int64]:
        """Of the files that a remote holds."""
        compressed = np.array([kind.zip_hashes is not None for kind in self.kinds])
        return np.where(compressed[self.kind], self.zip_bytes, self.raw_bytes)

    @property
    def max_bytes(self) -> NDArray[np.int64]:
        """On disk while a raw file is unpacked from the compressed one."""
        return self.raw_bytes + self.zip_bytes

    @property
    def whole(self) -> Index:
        """The index that this one is the first part of."""
        whole = Index(self.packed)
        return self if len(whole) == len(self) else whole

    def part_with(self, digest: str, count: int | None) -> Index | None:
        """The index of the first shards that have this digest, None if no first ones have.

        `count` is their number; None: it is not known, and each is tried.
        """
        if digest == self.digest:
            return self
        if count is None:
            count = next((n for n, of_first in _digests(self) if of_first == digest), 0)
        part = Index(self.packed, count) if 0 < count < len(self) else None
        return part if part is not None and part.digest == digest else None

    def __reduce__(self) -> tuple[type[Index], tuple[bytes, int]]:
        return Index, (self.packed[:], len(self))  # of a mapped file the bytes: it may be gone where they are wanted

    def refuse_unsafe(self, where: str) -> None:
        """Raises DataError if a column is pickled."""
        columns = [column for kind in self.kinds for column in kind.columns]
        unsafe = {column.name for column in columns if column.encoding.split(":")[0] == "pkl"}
        if unsafe:
            raise DataError(
                f"{where}: column {min(unsafe)!r} is pickled (pkl), and reading it can run any code hidden in the data;"
                " if you trust its origin, set allow_unsafe_types = true"
            )


class Shards(Sequence[Shard]):
    """The shards of all streams of a dataset, one after another. Arrays have the shape (shards,)."""

    def __init__(self, indexes: Sequence[Index]) -> None:
        self.indexes = tuple(indexes)
        self._begins = np.cumsum([0, *(len(index) for index in indexes)]).tolist()
        self.samples: NDArray[np.int64] = _joined([index.samples for index in indexes])
        self.largest = max(int(index.max_bytes.max()) for index in indexes)
        """The most bytes that a shard takes while it is unpacked."""
        before = np.cumsum([0, *(len(index.kinds) for index in indexes)]).tolist()
        self.kinds = tuple(kind for index in indexes for kind in index.kinds)
        self.kind: NDArray[np.int64] = _joined(
            [index.kind + begin if begin else index.kind for index, begin in zip(indexes, before, strict=False)]
        )
        """Of each shard, its place in `kinds`."""
        self.stream_of_kind = [number for number, index in enumerate(indexes) for _ in index.kinds]

    def __len__(self) -> int:
        return self._begins[-1]

    @overload
    def __getitem__(self, shard_id: int) -> Shard: ...
    @overload
    def __getitem__(self, shard_id: slice) -> list[Shard]: ...
    def __getitem__(self, shard_id: int | slice) -> Shard | list[Shard]:
        if isinstance(shard_id, slice):
            return [self[n] for n in range(len(self))[shard_id]]
        stream, row = self.place(range(len(self))[shard_id])
        return self.indexes[stream][row]

    def place(self, shard_id: int) -> tuple[int, int]:
        """The shard's stream, and its place in that stream's index."""
        stream = bisect_right(self._begins, shard_id) - 1
        return stream, shard_id - self._begins[stream]

    def shard_id(self, stream: int, row: int) -> int:
        """The inverse of `place`."""
        return self._begins[stream] + row


def read_index(folder: Path, allow_unsafe_types: bool = False) -> Index:
    """The shards of the MDS dataset in `folder`. Raises DataError if it is none, is damaged or points outside."""
    path = folder / INDEX
    try:
        return open_index(path, str(path), allow_unsafe_types, stays=True)
    except FileNotFoundError as error:
        names = sorted(names_in(folder))
        holds = ", ".join(names[:5]) + ", ..." * (len(names) > 5) or "nothing"
        found = f"; the folder holds {holds}" if folder.is_dir() else "; there is no such folder"
        raise DataError(f"{path}: not found, so {folder} is no MDS dataset{found}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error


def open_index(path: Path, where: str, allow_unsafe_types: bool = False, stays: bool = False) -> Index:
    """The shards that the index.json at `path` lists. A large one is parsed once a node, whichever folder it lies in.

    `stays`: other processes of the run open this very file; one of them hashes it.

    Raises DataError for content that is damaged or not to be trusted, OSError for a file that can't be read.
    """
    is_small = path.stat().st_size < SMALL_BYTES
    index = Index(pack_index(path.read_bytes(), where)) if is_small else _open_large(path, where, stays)
    if not allow_unsafe_types:
        index.refuse_unsafe(where)
    return index


def _open_large(path: Path, where: str, stays: bool) -> Index:
    with path.open("rb") as file:
        digest = _hashed_once(file) if stays else _hashed(file)
    made = folder_of("indexes") / f"{digest}.{PACKED_VERSION}"
    try:
        return Index(map_made(made, lambda target: _pack_into(target, path, digest, where)))
    except OSError as error:
        raise DataError(
            f"{error.filename or made}: cannot keep the index of {where} on this node: {error.strerror}; free some"
            " space, or set mosaic.node_folder"
        ) from error


def _pack_into(target: Path, path: Path, digest: str, where: str) -> None:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(f"{where}: was changed while it was read")
    target.write_bytes(pack_index(data, where))


def _hashed(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _hashed_once(file: BinaryIO) -> str:
    """The SHA-256 of a file, computed in one process of a run on this node as long as the file stays as it is."""
    found = os.fstat(file.fileno())
    seen = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    with suppress(OSError):  # no room for the answer: said when the index itself finds none
        answer = once_a_run(f"index {os.path.realpath(file.name)}", lambda: {"file": seen, "sha256": _hashed(file)})
        if answer["file"] == seen:
            return answer["sha256"]
    return _hashed(file)


def _digest(shards: Index) -> str:
    """As `pack_index` makes it."""
    whole = new_digest()
    for begin in range(0, len(shards), _DIGESTED_AT_ONCE):
        part = shards[begin : begin + _DIGESTED_AT_ONCE]
        whole.update(digest_part(begin, ((shard.samples, shard.raw) for shard in part)))
    whole.update(b"]")
    return whole.hexdigest()


def _digests(shards: Sequence[Shard]) -> Iterator[tuple[int, str]]:
    """For each number of first shards their digest, as `pack_index` makes it."""
    running = new_digest()
    for count, shard in enumerate(shards, 1):
        running.update(digest_part(count - 1, [(shard.samples, shard.raw)]))
        whole = running.copy()
        whole.update(b"]")
        yield count, whole.hexdigest()


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
