"""The plan of a run in stages: shares of streams that change, each stream read pass after pass in its own order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.order.deal import AT_ONCE as SAMPLES_AT_ONCE
from mosaic_photon.dataloader.order.deal import Layout
from mosaic_photon.dataloader.order.orders import SMALL, Orders
from mosaic_photon.dataloader.order.plan import BEGIN, Origin, StaticPlan
from mosaic_photon.dataloader.order.sampling import Ints
from mosaic_photon.dataloader.order.share_out import classes_of, samples_at
from mosaic_photon.dataloader.order.stages import Numbers

LOOK_EVERY = SMALL // 8
"""Samples from one look at what is needed soon to the next: a pass whose order is made beforehand has more."""
AT_ONCE = 1 << 14
"""Numbers in an array of those that places are dealt with: so few stay in a core's cache."""
HELD = 2
"""Passes of a stream whose orders a process holds: a batch may have samples of two."""


@dataclass(frozen=True)
class StagedPlan:
    """Batches of streams in changing shares, from `origin` on.

    A stream's pass k is Streaming's epoch `origin.epoch` + k of that stream alone. What each stage has had of a stream
    goes on where the stage before it ended.
    """

    orders: tuple[Orders, ...]
    """Of each stream's passes."""
    stages: tuple[Numbers, ...]
    global_batch: int
    origin: Origin = BEGIN
    before: StaticPlan | None = None
    """The plan of the batches before the origin, where the run began without stages."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(orders.order.streams[0].name for orders in self.orders)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Samples of a pass of each stream."""
        return np.array([orders.length for orders in self.orders])

    def place(self, batch: int) -> tuple[int, int]:
        """The stages are one epoch without end."""
        if (before := self._before(batch)) is not None:
            return before.place(batch)
        return self.origin.epoch, self._after(batch) * self.global_batch

    def end(self, batch: int) -> int:
        """After as many samples as all streams have together: then shards are fetched anew."""
        if batch < self.origin.batch and self.before is not None:
            return min(self.origin.batch, self.before.end(batch))
        window = max(1, int(self.sizes.sum()) // self.global_batch)
        after = (self._after(batch) // window + 1) * window
        lengths = [numbers.stage.batches for numbers in self.stages]
        if lengths[-1] is not None:  # then all of them are known
            after = min(after, sum(length or 0 for length in lengths))
        return self.origin.batch + after

    def samples(self, batch: int) -> NDArray[np.int64]:
        if (before := self._before(batch)) is not None:
            return before.samples(batch)
        return self._ids(batch, batch + 1, np.arange(self.global_batch))[0]

    def blocks(self, batch: int, end: int, layout: Layout, done: int = 0) -> Iterator[NDArray[np.int64]]:
        if (before := self._before(batch)) is not None:
            yield from before.blocks(batch, end, layout, done)
            return
        if done:
            yield self._ids(batch, batch + 1, self._places(layout, done)).reshape(-1, layout.local_batch)
            batch += 1
        places = self._places(layout)
        classes = classes_of(self.orders[0].order.canonical_nodes, self.global_batch)
        widest = max(len(places), classes * len(self.orders))
        at_once = max(1, min(AT_ONCE // widest, SAMPLES_AT_ONCE // self.global_batch))
        for begin in range(batch, end, at_once):
            yield self._ids(begin, min(begin + at_once, end), places).reshape(-1, layout.local_batch)

    def stream_of(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        begins = [orders.order.streams[0].first_sample for orders in self.orders]
        return np.searchsorted(begins, ids, side="right") - 1

    def passes(self, batch: int) -> NDArray[np.float64]:
        """Since the stages began."""
        if batch < self.origin.batch and self.before is not None:
            return self.before.passes(batch)
        return self.read(batch, batch)[0] / self.sizes

    def open(self, batch: int) -> None:
        for orders, (number, _) in zip(self.orders, self._passes_under_way(batch), strict=True):
            orders.check_room(number)
            orders.prepare(number)

    def prepare(self, batch: int) -> None:
        if batch % max(1, LOOK_EVERY // self.global_batch):
            return
        for orders, (number, place) in zip(self.orders, self._passes_under_way(batch), strict=True):
            if 2 * place > orders.length:
                orders.prepare(number + 1)

    def close(self) -> None:
        for orders in self.orders:
            orders.close()

    def _passes_under_way(self, batch: int) -> Iterator[tuple[int, int]]:
        """Of each stream the epoch that its order is of, and how much of it has been read."""
        for read, orders in zip(self.read(batch, batch)[0].tolist(), self.orders, strict=True):
            yield self.origin.epoch + read // orders.length, read % orders.length

    def read(self, begin: int, end: int) -> NDArray[np.int64]:
        """Samples of each stream before each of the batches from `begin` to `end`, both included, since the origin.

        Of shape (end - begin + 1, streams). Raises ConfigError if there is no room for a stage's numbers.
        """
        parts, first, before = [], self._after(begin), np.zeros(len(self.orders), np.int64)
        last = self._after(end)
        for stage in self.stages:
            length = stage.stage.batches
            to = last if length is None else min(last, length)
            if first <= to:
                parts.append(before + stage.between(first, to))
            if length is None or last <= length:
                break
            before = before + stage.between(length, length)[0]
            first, last = max(1, first - length), last - length
        return np.concatenate(parts)

    def _before(self, batch: int) -> StaticPlan | None:
        """The plan of a batch of before the stages; None: it is theirs. Raises ConfigError where it is not known."""
        if batch < self.origin.batch and self.before is not None:
            return self.before
        if batch < self.origin.first_known:
            raise self.origin.unknown(batch)
        return None

    def _after(self, batch: int) -> int:
        if batch < self.origin.batch:
            raise self.origin.unknown(batch)
        return batch - self.origin.batch

    def _places(self, layout: Layout, done: int = 0) -> NDArray[np.int64]:
        """The places of a batch, from `done` on, that a rank reads, in the order in which it reads them."""
        ranks = np.arange(done, self.global_batch).reshape(-1, layout.dp_world_size)
        return ranks[:, (layout.seat - done) % layout.dp_world_size]

    def _ids(self, begin: int, end: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample ids at these places of batches, of shape (batches, places)."""
        read = self.read(begin, end)
        ids = [self._ids_of(stream, first, last) for stream, (first, last) in enumerate(read[[0, -1]].T.tolist())]
        begins = read[:-1] - read[0] + np.cumsum([0, *map(len, ids[:-1])])
        classes = classes_of(self.orders[0].order.canonical_nodes, self.global_batch)
        found = samples_at(places, np.diff(read, axis=0), read[:-1] % self.sizes % classes, begins, classes)
        return np.concatenate(ids)[found].astype(np.int64)

    def _ids_of(self, stream: int, first: int, last: int) -> Ints:
        """A stream's samples from the `first` since the origin to the `last`, excluded."""
        orders, parts = self.orders[stream], []
        while first < last:
            number, within = divmod(first, orders.length)
            parts.append(orders.get(self.origin.epoch + number)[within : within + last - first])
            first += len(parts[-1])
        return np.concatenate(parts) if parts else np.zeros(0, orders.order.dtype)
