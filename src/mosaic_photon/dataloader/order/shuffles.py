"""Streaming's shuffles, canonical node by canonical node, so that no more than one of them is in memory. Pure numpy.

Streaming 0.13 makes the shuffled positions of a whole epoch at once, as int64 and with several copies: 48 bytes a
sample. Here each canonical node's samples are made in turn, in the narrowest integer, from the same random numbers in
the same order, so the result is the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.order.sampling import Ints, Units

Samples = Iterator[Ints]


@dataclass(frozen=True)
class Shuffle:
    """How the samples of an epoch, or of one of its streams, are shuffled."""

    algorithm: str | None
    """None: not at all."""
    nodes: int
    """Canonical nodes."""
    seed: int
    epoch: int
    block: int

    def samples(self, units: Units, dtype: np.dtype[np.unsignedinteger]) -> Samples:
        """The sample ids of each canonical node, in the order in which it reads them."""
        return _SHUFFLES[self.algorithm](units, self, dtype)

    def passes_of_nodes(self, units: Units) -> list[NDArray[np.int64]]:
        """The passes over shards that each canonical node has a part of: the same in every epoch of the same passes."""
        passes = np.arange(len(units.sizes))
        if self.algorithm == "naive":
            return [passes] * self.nodes
        if self.algorithm is not None:
            np.random.default_rng(self.seed).shuffle(passes)
        pieces = _Pieces.of(units, self.nodes, passes)
        return [pieces.passes[pieces.of_node(node)] for node in range(self.nodes)]


@dataclass(frozen=True)
class _Pieces:
    """The passes over shards in the order of the run, cut where a canonical node ends. Arrays of shape (pieces,)."""

    passes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    bounds: NDArray[np.int64]
    """Canonical node n has the pieces bounds[n] to bounds[n + 1]."""

    @classmethod
    def of(cls, units: Units, nodes: int, passes: NDArray[np.int64]) -> _Pieces:
        sizes = units.sizes[passes]
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        node_ends = total * np.arange(1, nodes + 1) // nodes
        cuts = np.union1d(ends, node_ends)
        cuts = cuts[cuts > 0]
        begins = np.concatenate([[0], cuts[:-1]]).astype(np.int64)
        at = np.searchsorted(ends, begins, side="right")
        bounds = np.concatenate([[0], np.searchsorted(cuts, node_ends, side="right")]).astype(np.int64)
        return cls(passes[at], begins - (ends - sizes)[at], cuts - begins, bounds)

    def of_node(self, node: int) -> slice:
        return slice(int(self.bounds[node]), int(self.bounds[node + 1]))


def _in_order(units: Units, how: Shuffle, dtype: np.dtype[np.unsignedinteger]) -> Samples:
    pieces = _Pieces.of(units, how.nodes, np.arange(len(units.sizes)))
    for node in range(how.nodes):
        part = pieces.of_node(node)
        yield units.read(pieces.passes[part], pieces.offsets[part], pieces.sizes[part], dtype)


def _naive(units: Units, how: Shuffle, dtype: np.dtype[np.unsignedinteger]) -> Samples:
    """All samples among each other."""
    everything = np.arange(len(units.sizes))
    ids = units.read(everything, np.zeros_like(everything), units.sizes, dtype)
    np.random.default_rng(how.seed + how.epoch).shuffle(ids)
    for node in range(how.nodes):
        yield ids[len(ids) * node // how.nodes : len(ids) * (node + 1) // how.nodes]


def _by_shard(units: Units, how: Shuffle, dtype: np.dtype[np.unsignedinteger]) -> Samples:
    """py1s: shards, and the samples of each."""
    for ids, sizes, rng in _shuffled_pieces(units, how, dtype):
        _shuffle_each(ids, sizes, rng)
        yield ids


def _by_expanded_shard(units: Units, how: Shuffle, dtype: np.dtype[np.unsignedinteger]) -> Samples:
    """py1e: as py1s, and each shard's samples are then spread over its neighbours, about `block` samples wide."""
    low, high = int(0.75 * how.block), int(1.25 * how.block)
    for ids, sizes, rng in _shuffled_pieces(units, how, dtype):
        _shuffle_each(ids, sizes, rng)
        total, begin = len(ids), 0
        positions = np.arange(total, dtype=np.float64)
        for size in sizes.tolist():
            reach = max(0, (rng.integers(low, high) - size) / 2)
            left, right = max(-reach, -begin), min(reach, total - begin - size)
            positions[begin : begin + size] += rng.uniform(left, right, size)
            begin += size
        yield ids[np.argsort(positions)]


def _by_block(units: Units, how: Shuffle, dtype: np.dtype[np.unsignedinteger]) -> Samples:
    """py1br: shards, then the samples within blocks of about `block` samples."""
    stagger: list[int] = []
    low, high = int(0.75 * how.block), int(1.25 * how.block)
    for node, (ids, _, rng) in enumerate(_shuffled_pieces(units, how, dtype)):
        stagger = stagger or rng.integers(0, low, (how.nodes,)).tolist()
        blocks, end = [], 0
        while end < len(ids):
            size = int(rng.integers(low, high))
            begin, stop = max(end - stagger[node], 0), min(end + size - stagger[node], len(ids))
            blocks.append(slice(begin, stop))
            end += stop - begin
        for block in blocks:
            rng.shuffle(ids[block])
        yield ids


def _by_shard_twice(units: Units, how: Shuffle, dtype: np.dtype[np.unsignedinteger]) -> Samples:
    """py2s: py1s over shards whose samples were shuffled once for the whole run."""
    run_rng, rng = np.random.default_rng(how.seed), np.random.default_rng(how.seed + how.epoch)
    passes = np.arange(len(units.sizes))
    run_rng.shuffle(passes)
    pieces = _Pieces.of(units, how.nodes, passes)
    shard = np.empty(0, dtype)  # the one being dealt out: it may go to several canonical nodes
    for node in range(how.nodes):
        part = pieces.of_node(node)
        of_pieces = []
        for number in range(part.start, part.stop):
            offset, size = int(pieces.offsets[number]), int(pieces.sizes[number])
            if offset == 0:
                whole = pieces.passes[number : number + 1]
                shard = units.read(whole, np.zeros(1, np.int64), units.sizes[whole], dtype)
                run_rng.shuffle(shard)
            of_pieces.append(shard[offset : offset + size])
        order = np.arange(len(of_pieces))
        rng.shuffle(order)
        ids = np.concatenate([of_pieces[number] for number in order]) if of_pieces else np.empty(0, dtype)
        _shuffle_each(ids, pieces.sizes[part][order], rng)
        yield ids


def _shuffled_pieces(
    units: Units, how: Shuffle, dtype: np.dtype[np.unsignedinteger]
) -> Iterator[tuple[Ints, NDArray[np.int64], np.random.Generator]]:
    """Each canonical node's samples, shards in the epoch's order and samples in theirs; the sizes of the pieces."""
    run_rng, rng = np.random.default_rng(how.seed), np.random.default_rng(how.seed + how.epoch)
    passes = np.arange(len(units.sizes))
    run_rng.shuffle(passes)
    pieces = _Pieces.of(units, how.nodes, passes)
    orders = [np.arange(pieces.bounds[node], pieces.bounds[node + 1]) for node in range(how.nodes)]
    for order in orders:  # of all canonical nodes, before the first sample is drawn
        rng.shuffle(order)
    for order in orders:
        sizes = pieces.sizes[order]
        yield units.read(pieces.passes[order], pieces.offsets[order], sizes, dtype), sizes, rng


def _shuffle_each(ids: Ints, sizes: NDArray[np.int64], rng: np.random.Generator) -> None:
    begin = 0
    for size in sizes.tolist():
        rng.shuffle(ids[begin : begin + size])
        begin += size


_SHUFFLES: dict[str | None, Callable[[Units, Shuffle, np.dtype[np.unsignedinteger]], Samples]] = {
    None: _in_order,
    "naive": _naive,
    "py1s": _by_shard,
    "py1e": _by_expanded_shard,
    "py1br": _by_block,
    "py2s": _by_shard_twice,
}
