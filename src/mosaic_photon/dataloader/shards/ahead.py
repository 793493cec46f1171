"""Work done ahead of the trainer: batches read by a thread, shards fetched by several."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from queue import SimpleQueue
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.shards.cache import ShardCache
from mosaic_photon.dataloader.shards.patience import LONGEST_PAUSE_S, Outage, say

T = TypeVar("T")
FETCHERS = 8
SHARDS_AHEAD = 32
LEAVE_AFTER_S = 10.0
"""A thread that does not end in this time, be it that its remote does not answer, is left to die."""


class ReadAhead(Generic[T]):
    """Iterates over `source` in a thread, `depth` items ahead. An exception in the thread is raised by `next`.

    The thread starts with the first `next`: by then whoever may `close` this knows of it.
    """

    def __init__(self, source: Iterator[T], depth: int) -> None:
        self._source = source
        self._items: SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = SimpleQueue()
        self._places: SimpleQueue[bool] = SimpleQueue()  # one entry for each item that may be made; False ends
        for _ in range(depth):
            self._places.put(True)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="mosaic-read", daemon=True)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._thread.ident is None:
            self._thread.start()
        item, error = self._items.get()
        if self._stopped:
            error = StopIteration()  # whatever was read ahead
        if error is not None:
            self._items.put((None, error))  # every later call fails in the same way
            raise error
        self._places.put(True)
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Stop the thread and wait for it, at most 10 s: it finishes the item it is making. `next` ends."""
        self._stopped = True
        self._places.put(False)
        self._items.put((None, StopIteration()))  # for one who waits for an item
        if self._thread.ident is not None:
            self._thread.join(timeout=LEAVE_AFTER_S)

    def _run(self) -> None:
        try:
            while self._places.get() and not self._stopped:
                self._items.put((next(self._source), None))
        except BaseException as error:  # handed to the thread that waits for the item
            self._items.put((None, error))


class FetchAhead:
    """Fetches shards by several threads in the order in which samples will need them."""

    def __init__(self, cache: ShardCache, threads: int = FETCHERS) -> None:
        self._cache = cache
        self._coming: Iterator[tuple[int, int]] = iter(())
        self._wanted: list[tuple[int, int]] = []  # what was drawn of it: (position of the first sample, shard)
        self._next, self._position, self._passed = 0, 0, 0
        self._samples_ahead: int | None = None
        self._shards_ahead = SHARDS_AHEAD
        self._changed = threading.Condition()
        self._stopped = False
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"mosaic-fetch-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def plan(self, shard_ids: Iterable[NDArray[np.int64]], samples_ahead: int | None) -> None:
        """Set out what is needed: the shards of the coming samples, in order, in blocks; position 0 is the first.

        Blocks are drawn only as far as shards may be fetched: `samples_ahead` samples ahead of the position; None:
        32 shards ahead. Under a cache limit never more than fill half of it: others would have to go
        before they are read.
        """
        ahead = SHARDS_AHEAD if samples_ahead is None else len(self._cache.shards)
        if self._cache.limit is not None:
            ahead = max(1, min(ahead, self._cache.limit // (2 * self._cache.shards.largest)))
        with self._changed:
            self._coming = _first_needs(shard_ids, len(self._cache.shards))
            self._wanted = []
            self._next, self._position, self._passed = 0, 0, 0
            self._samples_ahead, self._shards_ahead = samples_ahead, ahead
            self._changed.notify_all()

    def advance(self, position: int) -> None:
        """Samples before `position` have been read. Raises what a fetching thread raised."""
        if self._error is not None:
            raise self._error
        with self._changed:
            self._position = position
            while self._passed < len(self._wanted) and self._wanted[self._passed][0] < position:
                self._passed += 1
            if self._may_fetch():
                self._changed.notify_all()

    def close(self) -> None:
        """Stop the threads, each after the shard it is fetching; what takes longer than 10 s is left."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        deadline = time.monotonic() + LEAVE_AFTER_S
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _may_fetch(self) -> bool:
        if self._next >= self._passed + self._shards_ahead:
            return False
        if self._next == len(self._wanted):
            self._wanted.extend(islice(self._coming, 1))
        if self._next == len(self._wanted):
            return False
        return self._samples_ahead is None or self._wanted[self._next][0] <= self._position + self._samples_ahead

    def _run(self) -> None:
        while True:
            try:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or self._may_fetch())
                    if self._stopped:
                        return
                    wanted, number = self._wanted, self._next
                    self._next += 1
                self._fetch(wanted, number)
            except BaseException as error:  # raised in the reading thread by advance()
                self._error = error
                return

    def _fetch(self, wanted: list[tuple[int, int]], number: int) -> None:
        """Fetch a shard of a plan; while its remote does not answer again and again, until the reader has come to it.

        What is read by then needs none of it: only who waits for a shard loses patience.
        """
        shard_id, pause = wanted[number][1], 1.0
        while not self._cache.is_here(shard_id):
            try:
                self._cache.prefetch(shard_id)
                return
            except Outage as outage:
                say(self._cache.slot(shard_id).source, f"{outage}; what is here already is read meanwhile", "ahead")
            with self._changed:
                due = lambda: self._stopped or self._wanted is not wanted or self._passed > number  # noqa: E731
                if self._changed.wait_for(due, timeout=pause):
                    return
            pause = min(2 * pause, 3 * LONGEST_PAUSE_S)


def _first_needs(blocks: Iterable[NDArray[np.int64]], shards: int) -> Iterator[tuple[int, int]]:
    """Each shard once, with the position of the first sample that needs it, ascending."""
    seen, position = np.zeros(shards, bool), 0
    for shard_ids in blocks:
        found, first = np.unique(shard_ids, return_index=True)
        is_new = ~seen[found]
        seen[found] = True
        yield from sorted(zip((position + first[is_new]).tolist(), found[is_new].tolist(), strict=True))
        position += len(shard_ids)
