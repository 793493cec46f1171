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

from mosaic_photon.prepare.objects import bring, read, scratch, write
from mosaic_photon.prepare.record import Options


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
    from streaming import MDSWriter

    note = f"{notes}.{number:05}.json"
    with suppress(FileNotFoundError):
        known: dict[str, Any] = json.loads(read(note))
        return known
    rows = read_tokens(stretches).reshape(-1, options.tokens_per_sample)
    with scratch(os.path.dirname(notes)) as local:
        with MDSWriter(
            columns={"tokens": f"ndarray:int32:{options.tokens_per_sample}"},
            out=str(local / "shard"),
            compression=options.compression,
            hashes=options.hashes,
            size_limit=None,
            max_workers=1,
        ) as writer:
            for row in rows:
                writer.write({"tokens": row})
        (entry,) = json.loads((local / "shard" / "index.json").read_text())["shards"]
        for data in filter(None, (entry["raw_data"], entry["zip_data"])):
            written, data["basename"] = data["basename"], data["basename"].replace("00000", f"{number:05}", 1)
            if (local / "shard" / written).is_file():
                bring(local / "shard" / written, f"{folder}/{data['basename']}")
    write(note, json.dumps(entry).encode())
    return entry


def index_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of index.json over finished shards."""
    return {"version": 2, "shards": entries}
