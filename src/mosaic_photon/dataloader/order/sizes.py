"""Settings of Streaming's samplers that are too small, or too large, for the streams: found before it raises for them.

An epoch is shared out by stream, each with its share of the samples, of a batch and of the shuffle block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mosaic_photon.dataloader.order.epoch import EpochOrder

LEAST_BLOCK = {"py1e": 1, "py1br": 2}
"""Samples of a shuffle block from which these algorithms can draw; the others do not use blocks."""
SEARCHED = 1000
"""Multiples of a batch among which the least that would do is looked for."""


@dataclass(frozen=True)
class Part:
    """What the samplers take as one: a stream, or with `random` batching the whole epoch."""

    name: str
    samples: int
    share: float


def fault_of_sizes(order: EpochOrder, widths: list[int]) -> str:
    """What is too small or too large for the order's epochs, and what would do; "" if nothing is.

    Args:
        widths: samples of each stream in a batch that it is part of.
    """
    if order.batching_method == "random":
        parts = [Part("the epoch", sum(stream.choose for stream in order.streams), 1.0)]
    else:
        parts = [Part(f"stream {stream.name!r}", stream.choose, stream.proportion) for stream in order.streams]
    return (
        _fault_of_nothing(order, parts)
        or _fault_of_block(order, parts)
        or _fault_of_nodes(order, parts)
        or _fault_of_batch(order, parts, widths)
    )


def _fault_of_nothing(order: EpochOrder, parts: list[Part]) -> str:
    empty = next((part.name for part in parts if part.share <= 0), "")
    if not empty:
        return ""
    return (
        f"batching_method: {order.batching_method!r} takes samples of every stream, and {empty} is left none (choose,"
        f" repeat, proportion); give it more, or leave it out"
    )


def _fault_of_block(order: EpochOrder, parts: list[Part]) -> str:
    if order.shuffle is None:
        return ""
    least = max(LEAST_BLOCK.get(order.shuffle, 0), int(order.batching_method == "device_per_stream"))
    smallest = min(parts, key=lambda part: part.share)
    if int(order.block * smallest.share) >= least:
        return ""
    enough = math.ceil(least / smallest.share)
    while int(enough * smallest.share) < least:  # where a product falls just short of a whole number
        enough += 1
    return (
        f"shuffle_block_size: {order.block} leaves {smallest.name}, {smallest.share:.3%} of an epoch's samples, no"
        f" block to shuffle by {order.shuffle}; set at least {enough}"
    )


def _fault_of_nodes(order: EpochOrder, parts: list[Part]) -> str:
    smallest, nodes = min(parts, key=lambda part: part.samples), order.canonical_nodes
    if order.shuffle != "py1e" or nodes <= smallest.samples:
        return ""
    return (
        f"num_canonical_nodes: {nodes} nodes can't share the {smallest.samples} samples of {smallest.name};"
        f" set at most {smallest.samples}"
    )


def _fault_of_batch(order: EpochOrder, parts: list[Part], widths: list[int]) -> str:
    method, batch = order.batching_method, order.batch
    if method == "random":
        return ""
    key = "training.local_batch_size" if method == "device_per_stream" else "training.global_batch_size"
    if min(widths) < 1:
        starved = parts[widths.index(min(widths))]
        return (
            f"{key}: of {batch} samples none is left for {starved.name}, {starved.share:.3%} of an epoch's;"
            f" batching_method = {method!r} needs {_enough(parts, batch)}a larger share of that stream"
        )
    for part, width in zip(parts, widths, strict=True):
        there = math.ceil(part.samples / order.canonical_nodes) * order.canonical_nodes
        if there < width:
            return (
                f"{key}: a batch of {batch} takes {width} samples of {part.name}, which has {there} an epoch;"
                f" batching_method = {method!r} needs a smaller batch, or more of that stream (choose, repeat)"
            )
    return ""


def _enough(parts: list[Part], batch: int) -> str:
    """The least multiple of the batch that leaves each stream a sample, as 'at least N, or '; '' where none does.

    Where it is far off, one that surely does is given in its place.
    """
    shares = [part.share for part in parts]
    if min(shares) <= 0:
        return ""
    sure = math.ceil(1 / min(shares) / batch) * batch
    for size in range(2 * batch, min(sure, SEARCHED * batch) + 1, batch):
        if min(portions(shares, size)) >= 1:
            return f"at least {size}, or "
    while min(portions(shares, sure)) < 1:  # where a product falls just short of a whole number
        sure += batch
    return f"{sure}, or "


def portions(shares: list[float], batch: int) -> list[int]:
    """Samples of each stream in a stratified batch: Streaming's rounding."""
    exact = np.array(shares) * batch
    widths = exact.astype(np.int64)
    missing = batch - int(widths.sum())
    widths[np.flip(np.argsort(exact - widths))[:missing]] += 1
    return widths.tolist()
