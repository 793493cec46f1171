"""Second stage: the token files of a split, read as one long sequence -> MDS shards and their index.

Sample i is tokens [i * n, (i + 1) * n) of that sequence, as llm-foundry's ConcatTokensDataset gives it, so
each shard is written alone, and neither the number of workers nor a restart changes a byte of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.compat import streaming_lazy_package
from mosaic_photon.prepare.objects import bring, scratch
from mosaic_photon.prepare.record import Options
from mosaic_photon.stores import read, write

compression, hashing = map(streaming_lazy_package.alone, ("compression", "hashing"))


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens of a token file."""

    file: str
    begin: int
    count: int


class TokenSequence:
    """Token files laid end to end."""

    def __init__(self, files: list[str], sizes: Sequence[int] | NDArray[np.int64]) -> None:
        """`sizes` in tokens."""
        self.files, self.ends = files, np.cumsum(sizes)
        self.size = int(sum(sizes))

    def stretches(self, start: int, stop: int) -> list[Stretch]:
        """Where tokens [start, stop) are: of all files those that a shard needs."""
        number = int(np.searchsorted(self.ends, start, side="right"))
        found = []
        while start < stop:
            end = int(self.ends[number])
            begin = int(self.ends[number - 1]) if number else 0
            last = min(end, stop)
            if start < last:
                found.append(Stretch(self.files[number], start - begin, last - start))
            start, number = max(start, last), number + 1
        return found


def read_tokens(stretches: list[Stretch]) -> NDArray[np.int32]:
    """Their tokens as one int32 array."""
    return np.concatenate([np.frombuffer(read(one.file, 4 * one.begin, 4 * one.count), np.int32) for one in stretches])


def write_shard(number: int, stretches: list[Stretch], options: Options, folder: str, notes: str) -> dict[str, Any]:
    """Write one shard into `folder` and, last, its entry of the index as a note; returns the entry.

    A note left by an earlier run stands for a finished shard and is taken as it is.
    """
    note = f"{notes}.{number:05}.json"
    with suppress(FileNotFoundError):
        known: dict[str, Any] = json.loads(read(note))
        return known
    form, name = form_of(options), f"shard.{number:05}.mds"
    raw = encoded(read_tokens(stretches).reshape(-1, options.tokens_per_sample), form)
    entry = {
        "samples": sum(one.count for one in stretches) // options.tokens_per_sample,
        "raw_data": _file(raw, name, options),
    }
    entry |= {"zip_data": None, **form}
    if options.compression:
        raw, name = (
            compression.compress(options.compression, raw),
            f"{name}.{compression.get_compression_extension(options.compression)}",
        )
        entry["zip_data"] = _file(raw, name, options)
    with scratch(os.path.dirname(notes)) as local:
        (local / name).write_bytes(raw)
        bring(local / name, f"{folder}/{name}")
    write(note, json.dumps(entry).encode())
    return entry


def form_of(options: Options) -> dict[str, Any]:
    """What each shard, and its entry of the index, says of how it is written, in the words of Streaming's MDSWriter."""
    return {
        "version": 2,
        "format": "mds",
        "compression": options.compression,
        "hashes": options.hashes,
        "size_limit": None,
        "column_names": ["tokens"],
        "column_encodings": [f"ndarray:int32:{options.tokens_per_sample}"],
        "column_sizes": [4 * options.tokens_per_sample],
    }


def encoded(rows: NDArray[np.int32], form: dict[str, Any]) -> bytes:
    """int32 rows [N, tokens] as the bytes that MDSWriter would write, which imports torch and takes a row at a time.

    An MDS shard is uint32 N, N + 1 uint32 offsets of where samples begin and end, its form, and the samples.
    """
    text = json.dumps(form, sort_keys=True).encode()
    offsets = 4 * (len(rows) + 2) + len(text) + rows.strides[0] * np.arange(len(rows) + 1)
    return b"".join((np.uint32(len(rows)).tobytes(), offsets.astype(np.uint32).tobytes(), text, rows.data))


def _file(data: bytes, name: str, options: Options) -> dict[str, Any]:
    hashes = {algorithm: hashing.get_hash(algorithm, data) for algorithm in options.hashes}
    return {"basename": name, "bytes": len(data), "hashes": hashes}


def index_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of index.json over finished shards."""
    return {"version": 2, "shards": entries}
