"""Streaming's order of the samples of an epoch, and how long it is: a pure function of settings and shard sizes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.order.sampling import Ints, Units, sample_streams
from mosaic_photon.dataloader.order.shuffles import Shuffle
from mosaic_photon.dataloader.order.sizes import fault_of_sizes, portions
from mosaic_photon.errors import ConfigError

VERSION = 1
"""Of the order that these settings make: part of the name under which a node keeps it."""


@dataclass(frozen=True)
class StreamPart:
    """One stream of an epoch."""

    name: str
    samples_per_shard: NDArray[np.int64]
    first_sample: int
    choose: int
    """Samples drawn in an epoch."""
    proportion: float
    """Of the epoch's samples."""


@dataclass(frozen=True)
class EpochOrder:
    """What fixes the order of an epoch: Streaming's settings, and the sizes of the streams' shards.

    The order is the one in which Streaming gives an epoch to a single rank with batches of `batch` samples, without the
    -1 that fill up its last batch.
    """

    streams: tuple[StreamPart, ...]
    batching_method: str
    batch: int
    canonical_nodes: int
    balanced: bool
    """Sampling method: other samples in each epoch where a stream is not read whole."""
    granularity: int
    shuffle: str | None
    """The algorithm; None: not shuffled."""
    seed: int
    block: int
    once: bool = False
    """Without the samples that Streaming repeats to make canonical nodes equally long. With `random` batches only."""

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The narrowest that all sample ids fit."""
        last = self.streams[-1]
        return np.min_scalar_type(last.first_sample + int(last.samples_per_shard.sum()) - 1)

    def length(self) -> int:
        """Samples of an epoch, by arithmetic alone.

        Raises:
            ConfigError: the settings make no epoch.
        """
        if fault := fault_of_sizes(self, self._widths()):
            raise ConfigError(fault)
        if self.batching_method == "random":
            samples = sum(stream.choose for stream in self.streams)
            return samples if self.once else self._dealt(samples)
        batches = [
            self._dealt(stream.choose) // width for stream, width in zip(self.streams, self._widths(), strict=True)
        ]
        return (min(batches) * self.batch) if self.batching_method == "stratified" else sum(batches) * self.batch

    def name(self, epoch: int) -> str:
        """Of the order among all others: equal exactly if the order is."""
        settings = [VERSION, epoch, self.batching_method, self.batch, self.canonical_nodes, self.balanced]
        settings += [self.granularity, self.shuffle, self.seed, self.block, *(["once"] if self.once else [])]
        digest = hashlib.blake2b(digest_size=16)
        for stream in self.streams:
            settings.append([len(stream.samples_per_shard), stream.first_sample, stream.choose, stream.proportion])
            digest.update(stream.samples_per_shard.tobytes())
        digest.update(json.dumps(settings).encode())
        return digest.hexdigest()

    def fill(self, epoch: int, out: Ints) -> None:
        """Write the sample ids of an epoch into `out`, of shape (length(),) and of `dtype`, canonical node by node."""
        if self.batching_method == "random":
            self._fill(epoch, self.streams, self.block, out, np.zeros(1, np.int64), max(1, len(out)))
            return
        begins = self._batch_begins(epoch, len(out))
        for stream, width, begin in zip(self.streams, self._widths(), begins, strict=True):
            self._fill(epoch, (stream,), int(self.block * stream.proportion), out, begin, width)

    def make(self, epoch: int) -> Ints:
        """The order in memory."""
        out = np.empty(self.length(), self.dtype)
        self.fill(epoch, out)
        return out

    def shards_of_nodes(self, epoch: int, nodes: int) -> list[NDArray[np.int64]]:
        """The shards that each of `nodes` nodes needs in an epoch, ascending, without making the order.

        Exact but for an epoch's tail, and for `stratified` batches that not all nodes get the same share of: there, and
        with `device_per_stream` batches, it is all shards.
        """
        apart = math.gcd(self.canonical_nodes, nodes)
        needed: list[list[NDArray[np.int64]]] = [[] for _ in range(apart)]
        for streams in [self.streams] if self.batching_method == "random" else [(stream,) for stream in self.streams]:
            units = self._units(epoch, streams)
            shuffle = Shuffle(self.shuffle, self.canonical_nodes, self.seed, epoch, self.block)
            for node, passes in enumerate(shuffle.passes_of_nodes(units)):
                needed[node % apart].append(units.begins[passes])
        if self.batching_method == "device_per_stream" or any(width % apart for width in self._widths()):
            needed = [[begins for part in needed for begins in part]] * apart
        ends = np.cumsum(np.concatenate([stream.samples_per_shard for stream in self.streams]))
        shards = [np.unique(np.searchsorted(ends, np.concatenate(part), side="right")) for part in needed]
        return [shards[node % apart] for node in range(nodes)]

    def _fill(
        self,
        epoch: int,
        streams: tuple[StreamPart, ...],
        block: int,
        out: Ints,
        begins: NDArray[np.int64],
        width: int,
    ) -> None:
        """Put a stream's samples (or all streams') where its batches of `width` samples begin in the order."""
        units = self._units(epoch, streams)
        total, nodes = units.samples, self.canonical_nodes
        samples = Shuffle(self.shuffle, nodes, self.seed, epoch, block).samples(units, self.dtype)
        if self.once:
            _fill_once(samples, nodes, out)
            return
        if total < nodes:  # Streaming then repeats them, a sample for each canonical node
            everything = np.concatenate(list(samples))
            samples = iter(everything[np.arange(nodes) % total].reshape(nodes, 1))
        rounds = -(-total // nodes)
        used = len(begins) * width
        for node, ids in enumerate(samples):
            # A node that has one sample less than others reads its last one twice.
            padded = np.concatenate([ids, ids[-1:]]) if len(ids) < rounds else ids
            if used == len(out) == rounds * nodes:
                out[node::nodes] = padded
                continue
            place = np.arange(node, used, nodes)  # of its samples in the stream
            batch, within = np.divmod(place, width)
            out[begins[batch] + within] = padded[: len(place)]

    def _units(self, epoch: int, streams: tuple[StreamPart, ...]) -> Units:
        chosen = [(stream.samples_per_shard, stream.first_sample, stream.choose) for stream in streams]
        return sample_streams(chosen, self.granularity, self.seed, epoch, self.balanced, self.shuffle is not None)

    def _dealt(self, samples: int) -> int:
        """With canonical nodes made equally long."""
        return -(-samples // self.canonical_nodes) * self.canonical_nodes

    def _widths(self) -> list[int]:
        """Samples of each stream in a batch that it is part of."""
        if self.batching_method != "stratified":
            return [self.batch] * len(self.streams)
        return portions([stream.proportion for stream in self.streams], self.batch)

    def _batch_begins(self, epoch: int, length: int) -> list[NDArray[np.int64]]:
        """Where each stream's part of each of its batches begins in the order."""
        widths = self._widths()
        if self.batching_method == "stratified":
            before = np.cumsum(widths) - widths
            return [np.arange(length // self.batch) * self.batch + offset for offset in before]
        counts = [self._dealt(stream.choose) // self.batch for stream in self.streams]
        turns = np.repeat(np.arange(len(counts)), counts)
        varies = self.balanced and self.shuffle is not None
        np.random.default_rng(self.seed + epoch if varies else self.seed).shuffle(turns)
        return [np.flatnonzero(turns == number) * self.batch for number in range(len(counts))]


def _fill_once(samples: Iterator[Ints], nodes: int, out: Ints) -> None:
    """Canonical nodes in turn; the last round is of those that have one sample more."""
    rounds = len(out) // nodes
    last = rounds * nodes
    for node, ids in enumerate(samples):
        out[node : rounds * nodes : nodes] = ids[:rounds]
        if len(ids) > rounds:
            out[last] = ids[rounds]
            last += 1
