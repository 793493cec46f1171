"""Read samples and token rows from raw shard files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import FileIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.shards.cache import ShardCache
from mosaic_photon.dataloader.shards.index import Column, DataError, Form

KEEP_OPEN = 128


@dataclass
class OpenShard:
    """A raw shard file, unbuffered, and the byte offsets of its samples, int64 of shape (samples + 1,)."""

    file: FileIO
    offsets: NDArray[np.int64]

    def read(self, begin: int, size: int) -> bytes:
        """`size` bytes from `begin`; fewer only if the file shrank."""
        return os.pread(self.file.fileno(), size, begin)


class ShardReader:
    """The open shards of one process; beyond 128 the one opened first is closed.

    One thread at a time may read. After `close` another may, though the first still waits for a shard: that one will
    find the files that it had, and nobody else's.
    """

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache
        # An evicted shard frees its disk space only when nobody has it open any more.
        self._keep_open = KEEP_OPEN if cache.limit is None else 1
        self._open: dict[int, OpenShard] = {}

    def shard(self, shard_id: int) -> OpenShard:
        """The shard, opened if it is not; fetched if it is not here. Raises DataError if its header is damaged."""
        opened = self._open
        shard = opened.get(shard_id)
        if shard is None:
            while len(opened) >= self._keep_open:
                del opened[next(iter(opened))]
            shard = opened[shard_id] = self._open_shard(shard_id)
        return shard

    def sample(self, shard_id: int, index: int) -> bytes:
        """The bytes of one sample."""
        shard = self.shard(shard_id)
        begin, end = shard.offsets[index : index + 2].tolist()
        data = shard.read(begin, end - begin)
        if len(data) != end - begin:
            raise self.damaged(shard_id, "shrank while it was read")
        return data

    def close(self) -> None:
        """Close all shards, as soon as nobody reads from them."""
        self._open = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a spawned worker opens its own

    def _open_shard(self, shard_id: int) -> OpenShard:
        file = FileIO(self.cache.open(shard_id), "rb")
        info, shards = self.cache.shards[shard_id], self.cache.shards
        form = shards.kinds[shards.kind[shard_id]].form
        if form.format != "mds":
            return self._open_text(shard_id, file, form)
        header = np.frombuffer(os.pread(file.fileno(), 4 * (info.samples + 2), 0), np.uint32).astype(np.int64)
        shard = OpenShard(file, header[1:])
        sizes = np.diff(header[1:])
        # A varying column takes at least the four bytes that say its size.
        fixed = sum(4 if column.size is None else column.size for column in info.columns)
        varies = any(column.size is None for column in info.columns)
        fits = len(sizes) == info.samples and bool((sizes >= fixed if varies else sizes == fixed).all())
        if not fits or header[0] != info.samples or header[-1] != info.raw.bytes:
            raise self.damaged(shard_id, "has a damaged header")
        return shard

    def _open_text(self, shard_id: int, file: FileIO, form: Form) -> OpenShard:
        """A shard of lines. Its writer's file of offsets is not needed: no value holds a line end."""
        from mosaic_photon.dataloader.shards.formats import sample_offsets

        offsets = sample_offsets(form, file.readall())
        info = self.cache.shards[shard_id]
        if len(offsets) != info.samples + 1 or offsets[-1] != info.raw.bytes:
            raise self.damaged(shard_id, f"has {len(offsets) - 1} lines of {info.samples} samples")
        return OpenShard(file, offsets)

    def damaged(self, shard_id: int, what: str) -> DataError:
        """The error for a shard file that has been changed."""
        path = self.cache.slot(shard_id).raw
        return DataError(
            f"{path}: {what}; remove the file, or run with --mosaic.verify_cache to find all damaged files"
        )


@dataclass(frozen=True)
class TokenColumn:
    """Where the tokens of a shard's samples are.

    With `length` set, each sample has `length` tokens of `dtype` at `offset` bytes from its begin; without, samples
    must be decoded one by one.
    """

    dtype: np.dtype[Any]
    length: int | None
    offset: int = 0


def token_column(columns: tuple[Column, ...], bytes_dtype: str, where: str) -> TokenColumn | None:
    """The layout of a shard's `tokens` column, None if it has none. Raises DataError if the column holds no token ids.

    `bytes_dtype` is the type of tokens stored as plain bytes (llm-foundry's token_encoding_type).
    """
    names = [column.name for column in columns]
    if "tokens" not in names:
        return None
    at = names.index("tokens")
    encoding, *rest = columns[at].encoding.split(":")
    if encoding == "bytes":
        return TokenColumn(np.dtype(bytes_dtype), None)
    if encoding != "ndarray":
        raise DataError(
            f"{where}: column 'tokens' is encoded as {columns[at].encoding!r}, not as an array of token ids"
        )
    if not rest:
        return TokenColumn(np.dtype(np.int64), None)
    dtype = np.dtype(rest[0])
    if dtype.kind not in "iu":
        raise DataError(f"{where}: column 'tokens' holds {dtype.name} values, not token ids")
    shape = rest[1].split(",") if len(rest) > 1 else []
    if len(shape) > 1:
        raise DataError(f"{where}: column 'tokens' holds arrays of shape {rest[1]}, not rows of token ids")
    before = [column.size for column in columns[:at]]
    fixed = [size for size in before if size is not None]
    if len(shape) != 1 or len(fixed) < len(before):
        return TokenColumn(dtype, None)
    variable = sum(column.size is None for column in columns)
    return TokenColumn(dtype, int(shape[0]), 4 * variable + sum(fixed))
