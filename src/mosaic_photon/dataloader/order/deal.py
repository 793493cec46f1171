"""Who gets which sample: arithmetic on the global order of an epoch. Pure numpy.

Round after round, each data-parallel rank takes a micro-batch, and a round of all ranks takes the next samples of the
order. Within it the samples are dealt out in turn, to ranks of different nodes first: with N nodes, sample i goes to
node i mod N. As Streaming gives sample i to canonical node i mod C, and each canonical node has shards of its own, a
node needs one N-th of them where C is a multiple of N. What a step gets does not depend on the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.errors import ConfigError

AT_ONCE = 1 << 18
"""Samples of all ranks that are looked at together."""


@dataclass(frozen=True)
class Layout:
    """One data-parallel rank's part of the global batch. Nothing else of the job's layout matters."""

    dp_world_size: int
    dp_rank: int
    local_batch: int
    """Samples of a micro-batch of one rank."""
    global_batch: int
    """Samples of an optimizer step over all ranks."""
    unit: int = 1
    """Consecutive samples that stay together on a rank: 1, or local_batch where a device's batch is of one stream."""
    seats: tuple[int, ...] = ()
    """The turn of each rank in the deal, see `seats`; empty: all ranks are on one node."""

    @classmethod
    def of(
        cls, dp_world_size: int, dp_rank: int, local_batch: int, global_batch: int, seats: tuple[int, ...] = ()
    ) -> Layout:
        """`global_batch` < 0 means one micro-batch of each rank. Raises ConfigError if the batches don't divide."""
        if global_batch < 0:
            global_batch = local_batch * dp_world_size
        if local_batch < 1 or global_batch % (local_batch * dp_world_size):
            raise ConfigError(
                f"training.global_batch_size = {global_batch} does not divide into micro-batches: it must be a multiple"
                f" of local_batch_size {local_batch} * data-parallel degree {dp_world_size},"
                f" {local_batch * dp_world_size}."
            )
        return cls(dp_world_size, dp_rank, local_batch, global_batch, seats=seats)

    @property
    def seat(self) -> int:
        """This rank's turn in the deal."""
        return self.seats[self.dp_rank] if self.seats else self.dp_rank


def seats(nodes_of_rank: Sequence[Hashable]) -> tuple[int, ...]:
    """The turn of each data-parallel rank in the deal, so that neighbours in it sit on different nodes.

    Args:
        nodes_of_rank: for each data-parallel rank the node, or set of nodes, that its processes run on. Ranks with
            equal ones share what they read. Groups of different sizes count as several nodes of the largest size that
            divides all of them.
    """
    groups: dict[Hashable, list[int]] = {}
    for rank, nodes in enumerate(nodes_of_rank):
        groups.setdefault(nodes, []).append(rank)
    size = math.gcd(*map(len, groups.values()))
    parts = [ranks[begin : begin + size] for ranks in groups.values() for begin in range(0, len(ranks), size)]
    found = [0] * len(nodes_of_rank)
    for column, ranks in enumerate(parts):
        for row, rank in enumerate(ranks):
            found[rank] = row * len(parts) + column
    return tuple(found)


def nodes_of_ranks(places: Iterable[tuple[int, Hashable]]) -> tuple[frozenset[Hashable], ...]:
    """For each data-parallel rank the nodes of its processes, from each process's (data-parallel rank, node)."""
    nodes: dict[int, set[Hashable]] = {}
    for dp_rank, node in places:
        nodes.setdefault(dp_rank, set()).add(node)
    return tuple(frozenset(nodes[dp_rank]) for dp_rank in sorted(nodes))


def places_of_mesh(processes: int, per_node: int, dp_world_size: int, inner: int) -> list[tuple[int, Hashable]]:
    """(data-parallel rank, node) of each process of a mesh of TorchTitan's on nodes filled one after the other.

    Args:
        inner: processes that share a data-parallel rank side by side, those of tensor and context parallelism; pipeline
            stages are the outermost dimension.
    """
    return [((rank // inner) % dp_world_size, rank // per_node) for rank in range(processes)]


def usable_samples(epoch_samples: int, start: int, layout: Layout) -> int:
    """Samples from `start` to the end of the epoch that fill whole global batches."""
    return max(0, epoch_samples - start) // layout.global_batch * layout.global_batch


def rank_batches(order: NDArray[np.integer], start: int, layout: Layout) -> NDArray[np.int64]:
    """The rank's sample ids from `start` on, of shape (micro-batches, local_batch).

    Each global batch holds the same samples for every number of ranks and nodes.
    """
    stop = start + usable_samples(len(order), start, layout)
    dealt = order[start:stop].reshape(-1, layout.dp_world_size, layout.unit)  # (rounds, ranks, unit)
    seat = (layout.seat - start // layout.unit) % layout.dp_world_size  # counted from the epoch's begin
    return dealt[:, seat].reshape(-1, layout.local_batch).astype(np.int64)


def blocks_of_batches(
    order: NDArray[np.integer], start: int, layout: Layout, done: int = 0
) -> Iterator[NDArray[np.int64]]:
    """`rank_batches` in pieces of some thousand samples, for an order that is a file.

    Args:
        done: samples before `start` that belong to a step which is still to be finished.
    """
    if done:
        rest = replace(layout, global_batch=layout.global_batch - done)
        yield rank_batches(order[: start + rest.global_batch], start, rest)
        start += rest.global_batch
    stop, size = start + usable_samples(len(order), start, layout), _whole(layout.global_batch)
    for begin in range(start, stop, size):
        yield rank_batches(order[: min(begin + size, stop)], begin, layout)


def padded_rank_batches(order: NDArray[np.integer], layout: Layout) -> NDArray[np.int64]:
    """All samples once, of shape (micro-batches, local_batch), equally many on all ranks; -1 fills up the last."""
    whole = layout.local_batch * layout.dp_world_size
    padded = np.pad(order.astype(np.int64), (0, -len(order) % whole), constant_values=-1)
    return padded.reshape(-1, layout.dp_world_size)[:, layout.dp_rank].reshape(-1, layout.local_batch)


def blocks_of_padded_batches(order: NDArray[np.integer], layout: Layout) -> Iterator[NDArray[np.int64]]:
    """`padded_rank_batches` in pieces of some thousand samples."""
    size = _whole(layout.local_batch * layout.dp_world_size)
    for begin in range(0, len(order), size):
        yield padded_rank_batches(order[begin : begin + size], layout)


def _whole(batch: int) -> int:
    return max(1, AT_ONCE // batch) * batch
