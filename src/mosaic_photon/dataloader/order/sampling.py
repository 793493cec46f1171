"""What of each shard an epoch reads, as Streaming samples it: repeats, and parts drawn at random. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Units:
    """The passes over shards that make a stream's samples in an epoch, in the shards' order.

    A pass reads all of a shard, or samples drawn of it. Samples are counted through all passes: Streaming shuffles
    these positions and looks up afterwards which sample each one is.
    """

    sizes: NDArray[np.int64]
    """Samples of each pass, at least 1."""
    begins: NDArray[np.int64]
    """The id of the first sample of its shard."""
    drawn_at: NDArray[np.int64]
    """Where in `drawn` the samples of a pass over a part begin; -1: it reads its shard from the first sample on."""
    drawn: Ints
    """Samples drawn, counted within their shards."""

    @property
    def samples(self) -> int:
        return int(self.sizes.sum())

    def read(self, passes: Ints, offsets: Ints, sizes: Ints, dtype: np.dtype[np.unsignedinteger]) -> Ints:
        """The sample ids of pieces of passes, one after the other: `sizes` samples from `offsets` on of each."""
        ids = np.ones(int(sizes.sum()), dtype)
        begins = self.begins[passes] + offsets
        if not len(ids):
            return ids
        # The differences between neighbours, added up in place: 1 within a piece. They may be negative: modulo 2^bits.
        ids[0] = begins[0]
        jumps = (begins[1:] - begins[:-1] - sizes[:-1] + 1).astype(dtype)
        ids[np.cumsum(sizes[:-1])] = jumps
        np.cumsum(ids, dtype=dtype, out=ids)
        if len(self.drawn):
            self._replace_by_drawn(ids, passes, offsets, sizes)
        return ids

    def _replace_by_drawn(self, ids: Ints, passes: Ints, offsets: Ints, sizes: Ints) -> None:
        ends = np.cumsum(sizes)
        at = self.drawn_at[passes]
        for piece in np.flatnonzero(at >= 0).tolist():
            begin, size = int(at[piece] + offsets[piece]), int(sizes[piece])
            of_shard = int(self.begins[passes[piece]])
            ids[ends[piece] - size : ends[piece]] = of_shard + self.drawn[begin : begin + size].astype(np.int64)


def sample_streams(
    streams: list[tuple[NDArray[np.int64], int, int]],
    granularity: int,
    seed: int,
    epoch: int,
    balanced: bool,
    shuffle: bool,
) -> Units:
    """Streaming's `resample_streams` for streams of (samples of each shard, id of the first sample, samples to choose).

    Args:
        granularity: samples drawn at a time from the same shard.
        balanced: whether other samples are drawn in each epoch.
        shuffle: whether the order is shuffled, without which balanced sampling takes the same number of each shard.
    """
    rng = np.random.default_rng(seed + epoch if balanced else seed)
    parts = [
        _sample_stream(
            shards, first, _chosen_of_shards(shards, choose, granularity, seed + epoch * (balanced and shuffle)), rng
        )
        for shards, first, choose in streams
    ]
    offset, at = 0, []
    for units in parts:
        at.append(np.where(units.drawn_at >= 0, units.drawn_at + offset, -1))
        offset += len(units.drawn)
    return Units(
        np.concatenate([units.sizes for units in parts]),
        np.concatenate([units.begins for units in parts]),
        np.concatenate(at),
        np.concatenate([units.drawn for units in parts]),
    )


def _sample_stream(shards: NDArray[np.int64], first: int, chosen: NDArray[np.int64], rng: np.random.Generator) -> Units:
    ends = np.cumsum(shards)
    repeats, rest = np.divmod(chosen, np.maximum(shards, 1))
    counts = repeats + (rest > 0)
    shard_of = np.repeat(np.arange(len(shards)), counts)
    sizes, drawn_at = shards[shard_of], np.full(len(shard_of), -1, np.int64)
    partial = np.flatnonzero(rest)
    last = np.cumsum(counts)[partial] - 1
    sizes[last] = rest[partial]
    drawn_at[last] = np.cumsum(rest[partial]) - rest[partial]
    drawn = np.empty(int(rest.sum()), np.min_scalar_type(int(shards.max(initial=1)) - 1))
    at = 0
    for shard in partial.tolist():
        part = rng.choice(shards[shard], rest[shard], False)
        part.sort()
        drawn[at : at + len(part)] = part
        at += len(part)
    return Units(sizes, first + (ends - shards)[shard_of], drawn_at, drawn)


def _chosen_of_shards(shards: NDArray[np.int64], choose: int, granularity: int, seed: int) -> NDArray[np.int64]:
    """Streaming's `get_sampling`: how many samples of each shard; whole repeats, and the rest granule by granule."""
    total = int(shards.sum())
    repeats, rest = divmod(choose, total)
    chosen = shards * repeats
    if not rest:
        return chosen
    granules = -(-shards // granularity)
    ends = np.cumsum(granules)
    order = np.arange(ends[-1], dtype=np.min_scalar_type(int(ends[-1])))
    np.random.default_rng(seed).shuffle(order)
    last_size = shards - (granules - 1) * granularity
    for begin in range(0, len(order), AT_ONCE):
        granule = order[begin : begin + AT_ONCE]
        shard = np.searchsorted(ends, granule, side="right")
        size = np.where(granule == ends[shard] - 1, last_size[shard], granularity)
        before = np.cumsum(size) - size
        size = np.clip(rest - before, 0, size)
        chosen += np.bincount(shard, weights=size, minlength=len(shards)).astype(np.int64)
        rest -= int(size.sum())
        if not rest:
            break
    return chosen
