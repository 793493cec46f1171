"""What each node of a job reads and keeps, computed beforehand: an epoch's from the indexes, stages' from the plan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.order.deal import Layout, nodes_of_ranks, seats
from mosaic_photon.dataloader.order.epoch import EpochOrder
from mosaic_photon.dataloader.order.staged import StagedPlan
from mosaic_photon.dataloader.shards.cache import ShardCache

ALMOST_ALL = 0.9


@dataclass(frozen=True)
class NodeNeed:
    """One node in an epoch, or in some steps of stages. Bytes are those of the files as stored, compressed or not."""

    shards: int
    bytes: int
    """Read from remotes and folders."""
    download_bytes: int
    """Of them from remotes, by a node whose caches are empty."""
    kept_bytes: int
    """In its caches at the end, unpacked, and of compressed data on its own disk what is unpacked of them."""


Places = list[tuple[int, Hashable]]
"""Of each process its data-parallel rank and its node."""


def needs_of_nodes(
    shards_of_parts: Callable[[int], list[NDArray[np.int64]]], cache: ShardCache, places: Places
) -> list[NodeNeed]:
    """What each node needs, nodes in the order in which `places` names them.

    Args:
        shards_of_parts: of so many nodes, the shards that each reads.
        cache: where they are.
        places: the job's processes.
    """
    turns, parts = seats(nodes_of_ranks(places)), _parts(places)
    shards_of_part = shards_of_parts(parts)
    parts_of_node: dict[Hashable, set[int]] = {}
    for rank, node in places:
        parts_of_node.setdefault(node, set()).add(turns[rank] % parts)
    known: dict[frozenset[int], NodeNeed] = {}
    for mine in map(frozenset, parts_of_node.values()):
        if mine not in known:
            known[mine] = _need(cache, np.unique(np.concatenate([shards_of_part[part] for part in mine])))
    return [known[frozenset(mine)] for mine in parts_of_node.values()]


def shards_of_stages(plan: StagedPlan, dataset: ShardedDataset, end: int, parts: int) -> list[NDArray[np.int64]]:
    """The shards that each of `parts` nodes reads before batch `end`, ascending. Makes the orders of the passes."""
    found = []
    for part in range(parts):
        layout = Layout(parts, part, plan.global_batch // parts, plan.global_batch)
        seen = np.zeros(len(dataset.cache.shards), bool)
        for ids in plan.blocks(0, end, layout):
            seen[dataset.locate(ids)[0]] = True
        found.append(np.flatnonzero(seen))
    return found


def warning(needs: list[NodeNeed], shards: int, order: EpochOrder, places: Places) -> str | None:
    """What to change where nodes would read (almost) all shards; None where they do not, or have to."""
    parts, most = _parts(places), max(need.shards for need in needs) / max(1, shards)
    if parts < 2 or most < ALMOST_ALL:
        return None
    advice = f"num_canonical_nodes is {order.canonical_nodes}; with a multiple of {parts} each node reads a part"
    if not order.canonical_nodes % parts:
        advice = f"batching_method is {order.batching_method!r}, whose batches the nodes do not share out evenly"
        if order.once:
            advice = "in stages, streams come in numbers that the nodes do not share out evenly"
    if order.batching_method == "device_per_stream":
        advice = "batching_method is 'device_per_stream', whose micro-batches any node may get"
    return f"a node reads {most:.0%} of the shards: {advice}"


def _parts(places: Places) -> int:
    """Groups of data-parallel ranks, each with a part of the data of its own."""
    nodes = nodes_of_ranks(places)
    return len(nodes) // math.gcd(*Counter(nodes).values())


def _need(cache: ShardCache, shards: NDArray[np.int64]) -> NodeNeed:
    indexes = cache.shards.indexes
    counts = [len(index) for index in indexes]
    stored = np.concatenate([index.stored_bytes for index in indexes])[shards]
    keep_zip = [source.keep_zip for source in cache.sources]
    kept = [index.max_bytes if both else index.raw_bytes for index, both in zip(indexes, keep_zip, strict=True)]
    cached = np.repeat([source.cache is not None for source in cache.sources], counts)[shards]
    fetched = np.repeat([source.remote is not None and not source.data for source in cache.sources], counts)[shards]
    kept_bytes = int(np.concatenate(kept)[shards][cached].sum())
    return NodeNeed(
        shards=len(shards),
        bytes=int(stored.sum()),
        download_bytes=int(stored[fetched].sum()),
        kept_bytes=kept_bytes if cache.limit is None else min(kept_bytes, cache.limit),
    )
