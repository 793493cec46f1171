"""What samples hold, counted: tokens, documents, bytes, how the vocabulary is used, what stands there twice.

Memory is bounded whatever the number of samples: a count for each id of the vocabulary, and `Hashes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.shards.index import DataError
from mosaic_photon.dataloader.tokens import ANY_VOCABULARY, length_without
from mosaic_photon.token_bytes import TokenBytes

SHARDS, SAMPLES = 64, 16384
"""Of a stream that are looked at where not all are asked for: evenly spaced, as many samples of each shard."""
COMMON = 1000
"""Tokens, by how often they are there, behind which a vocabulary's tail begins."""
CHUNK = 256
"""Samples that are counted at once."""


@dataclass(frozen=True)
class Meaning:
    """What ids mean. All None where there is no tokenizer."""

    bytes_dtype: str = "int64"
    """Of tokens that are stored as bytes."""
    separator: int | None = None
    """The data config's token between documents."""
    pad_id: int | None = None
    tokenizer: Any = None
    """Of the tokenizers library, for streams of text."""
    token_bytes: TokenBytes | None = None


class Hashes:
    """Which samples stand there more than once, by 64-bit hashes (xxh3) of which a bounded number is kept.

    With more than `limit` different ones, those are kept whose last bits are 0, one bit more each time: all copies of
    a sample are then kept or none, so that the share of copies among the kept is an unbiased estimate.
    """

    def __init__(self, limit: int = 1 << 16) -> None:
        self.limit, self.bits = limit, 0
        self.values, self.counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)

    def add(self, values: NDArray[np.uint64], counts: NDArray[np.int64] | None = None) -> None:
        """Take in hashes, each so many times; once where that is not said."""
        new = np.ones(len(values), np.int64) if counts is None else counts
        self.values, where = np.unique(np.concatenate([self.values, values]), return_inverse=True)
        self.counts = np.bincount(where, np.concatenate([self.counts, new]), len(self.values)).astype(np.int64)
        self._thin()

    def merge(self, other: Hashes) -> None:
        """Take in what another one has kept."""
        self.bits = max(self.bits, other.bits)
        self.add(other.values, other.counts)

    def share(self) -> float:
        """Of all samples those that are copies of one that has been counted."""
        return 1 - len(self.values) / int(self.counts.sum()) if len(self.values) else 0.0

    def _thin(self) -> None:
        while True:
            kept = self.values & np.uint64((1 << self.bits) - 1) == 0
            self.values, self.counts = self.values[kept], self.counts[kept]
            if len(self.values) <= self.limit:
                return
            self.bits += 1


@dataclass
class Counts:
    """Of the samples that have been read; two of them are added by `add`."""

    read: int = 0
    tokens: int = 0
    """Without padding."""
    padding: int = 0
    """Pad tokens behind a sample's last other one."""
    documents: int = 0
    """Separators; samples, of a stream of text."""
    text_bytes: int = 0
    """Of streams of text; those of tokens follow from `ids`."""
    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """How often each token id is there, without padding."""
    hashes: Hashes = field(default_factory=Hashes)

    def add(self, other: Counts) -> None:
        """Take in what another one has counted."""
        for name in ("read", "tokens", "padding", "documents", "text_bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.add_ids(other.ids)
        self.hashes.merge(other.hashes)

    def add_ids(self, ids: NDArray[np.int64]) -> None:
        """Add how often each id is there."""
        if len(ids) > len(self.ids):
            self.ids = np.pad(self.ids, (0, len(ids) - len(self.ids)))
        self.ids[: len(ids)] += ids


Part = tuple[int, int, int, int]
"""A stream, its shards from one to before another, and how many samples of each are looked at (-1: all)."""


def parts_of(dataset: ShardedDataset, whole: bool, parts: int) -> list[Part]:
    """What there is to count, in about so many parts; without `whole` the shards that are looked at, one by one."""
    found: list[Part] = []
    for stream, (offset, count) in enumerate(
        zip(dataset.shard_offset_per_stream.tolist(), dataset.shards_per_stream.tolist(), strict=True)
    ):
        if not whole:
            chosen = np.unique(np.linspace(0, count - 1, min(SHARDS, count), dtype=np.int64)) + offset
            found += [(stream, shard, shard + 1, -(-SAMPLES // len(chosen))) for shard in chosen.tolist()]
            continue
        size = max(1, -(-len(dataset.shards) // parts))
        ends = [*range(offset, offset + count, size), offset + count]
        found += [(stream, begin, end, -1) for begin, end in pairwise(ends)]
    return found


def samples_in(dataset: ShardedDataset, part: Part) -> int:
    """How many samples a part has to look at."""
    _, begin, end, most = part
    samples = dataset.samples_per_shard[begin:end]
    return int((samples if most < 0 else samples.clip(max=most)).sum())


def count(dataset: ShardedDataset, part: Part, meaning: Meaning) -> Counts:
    """Read a part's samples.

    Raises:
        DataError: one of them can't be read.
    """
    counts = Counts()
    waiting: list[int] = []  # hashes: taking in many at once costs what a few do
    for ids in _ids(dataset, part):
        rows = [_row(dataset, int(sample_id), meaning, counts) for sample_id in ids]
        counts.read += len(rows)
        waiting += [one for one, _ in rows]
        if len(waiting) >= counts.hashes.limit:
            counts.hashes.add(np.array(waiting, np.uint64))
            waiting.clear()
        tokens = [row[: length_without(meaning.pad_id, row)] for _, row in rows]
        counts.padding += sum(len(row) for _, row in rows) - sum(map(len, tokens))
        together = np.concatenate(tokens).astype(np.int64) if tokens else np.zeros(0, np.int64)
        counts.tokens += len(together)
        counts.add_ids(np.bincount(together) if len(together) else np.zeros(0, np.int64))
    counts.hashes.add(np.array(waiting, np.uint64))
    dataset.reader.close()
    if meaning.separator is not None and meaning.separator < len(counts.ids) and not counts.documents:
        counts.documents = int(counts.ids[meaning.separator])
    return counts


def _ids(dataset: ShardedDataset, part: Part) -> Iterator[NDArray[np.int64]]:
    """The sample ids of a part, so many at a time."""
    _, begin, end, most = part
    for shard in range(begin, end):
        first, samples = int(dataset.sample_offset_per_shard[shard]), int(dataset.samples_per_shard[shard])
        number = samples if most < 0 else min(most, samples)
        ids = np.linspace(first, first + samples - 1, number, dtype=np.int64)
        yield from (ids[at : at + CHUNK] for at in range(0, len(ids), CHUNK))


def _row(
    dataset: ShardedDataset, sample_id: int, meaning: Meaning, counts: Counts
) -> tuple[int, NDArray[np.integer[Any]]]:
    """A sample's hash and tokens; of text, the tokens that the tokenizer makes of it, none without one."""
    sample = dataset.get_item(sample_id)
    tokens = sample.get("tokens")
    if isinstance(tokens, bytes) and len(tokens) % np.dtype(meaning.bytes_dtype).itemsize == 0:
        tokens = np.frombuffer(tokens, meaning.bytes_dtype)
    if isinstance(tokens, np.ndarray) and tokens.ndim == 1 and tokens.dtype.kind in "iu":
        size = ANY_VOCABULARY if meaning.token_bytes is None else len(meaning.token_bytes.lengths)
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise DataError(f"{dataset.name_of(sample_id)}: has token ids outside the vocabulary of {size} tokens")
        return xxhash.xxh3_64_intdigest(tokens.tobytes()), tokens
    if "tokens" in sample:
        raise DataError(f"{dataset.name_of(sample_id)}: has no row of token ids; --samples 1 shows what it has")
    text = "".join(value if isinstance(value, str) else json.dumps(value, default=repr) for value in sample.values())
    counts.documents += 1
    counts.text_bytes += len(text.encode())
    ids = meaning.tokenizer.encode(text, add_special_tokens=False).ids if meaning.tokenizer is not None else []
    return xxhash.xxh3_64_intdigest(text.encode()), np.array(ids, np.int64)


@dataclass
class StreamCount:
    """What a stream's samples hold. Shares are between 0 and 1, None where nothing tells."""

    name: str
    samples: int
    read: int
    tokens: int | None
    """Without padding; from the samples that were read where these are not all."""
    documents: int | None
    bytes_per_token: float | None
    """Bytes of text over the tokens that are text."""
    used: int | None
    """Different token ids."""
    vocabulary: int | None
    beyond_common: float | None
    """Share of the tokens that are none of the COMMON most frequent ones."""
    duplicates: float
    """Share of the samples that are copies of another one."""
    duplicates_exact: bool
    """Of the samples read; else estimated from a part of the hashes."""
    padding: float | None
    special: float | None
    usage: list[tuple[int, float]]
    """So many of the most frequent tokens make this share of all; for a plot."""


def summary(name: str, samples: int, counts: Counts, meaning: Meaning) -> StreamCount:
    """Of a stream with so many samples, what the counts say."""
    scale = samples / counts.read if counts.read else 0.0
    table, tokens = meaning.token_bytes, counts.tokens
    special = text_bytes = None
    if table is not None and tokens:
        known = counts.ids[: len(table.lengths)]
        special = int(known[table.special[: len(known)]].sum())
        text_bytes = counts.text_bytes or int((known * table.lengths[: len(known)]).sum())
    ranked = np.sort(counts.ids[counts.ids > 0])[::-1]
    has_documents = meaning.separator is not None or counts.text_bytes
    are_text = None if special is None else tokens - special
    return StreamCount(
        name=name,
        samples=samples,
        read=counts.read,
        tokens=round(tokens * scale) if tokens else None,
        documents=round(counts.documents * scale) if has_documents else None,
        bytes_per_token=text_bytes / are_text if text_bytes and are_text else None,
        used=len(ranked) if tokens else None,
        vocabulary=None if table is None else len(table.lengths),
        beyond_common=float(ranked[COMMON:].sum() / tokens) if tokens else None,
        duplicates=counts.hashes.share(),
        duplicates_exact=counts.hashes.bits == 0,
        padding=counts.padding / (tokens + counts.padding) if meaning.pad_id is not None and tokens else None,
        special=special / tokens if special is not None else None,
        usage=_usage(ranked),
    )


def _usage(ranked: NDArray[np.int64], points: int = 80) -> list[tuple[int, float]]:
    if not len(ranked):
        return []
    ranks = np.unique(np.geomspace(1, len(ranked), points).astype(np.int64))
    shares = ranked.cumsum()[ranks - 1] / ranked.sum()
    return list(zip(ranks.tolist(), shares.tolist(), strict=True))


def total(counts: Sequence[Counts]) -> Counts:
    """All of them together; a sample in two streams is a copy, too."""
    whole = Counts(hashes=Hashes(1 << 20))
    for one in counts:
        whole.add(one)
    return whole
