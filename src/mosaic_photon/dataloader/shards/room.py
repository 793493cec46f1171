"""Room in the caches of a dataset: what they hold, kept under `cache_limit` by evicting what was opened longest ago."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.shards.claim import lock_path, part_path, read_claim
from mosaic_photon.dataloader.shards.fetch import Source, accessing
from mosaic_photon.dataloader.shards.files import size_of
from mosaic_photon.dataloader.shards.index import DataError, Shard
from mosaic_photon.dataloader.shards.ledger import BYTES, KEPT, OPENED, Ledger
from mosaic_photon.dataloader.shards.slot import Slot
from mosaic_photon.dataloader.shards.table import Shards
from mosaic_photon.files import locked

ROOM_TIMEOUT_S = 60.0


class Room:
    """The caches among a dataset's sources. Safe to use from any thread and process, and after a fork."""

    def __init__(self, sources: Sequence[Source], shards: Shards, limit: int | None) -> None:
        """`limit` bounds the bytes of all caches together; None: no bound. Raises DataError."""
        self.limit = limit
        self.ledger_of: list[Ledger | None] = []
        """Of each source, None where it is no cache."""
        ledgers: dict[tuple[int, int], Ledger] = {}  # by inode: streams may share a folder by several names
        for source, index in zip(sources, shards.indexes, strict=True):
            ledger = None
            with accessing(source):
                claim = read_claim(source.folder) if source.cache else None
                if claim is not None:
                    found = source.folder.stat()
                    key = found.st_dev, found.st_ino
                    ledger = ledgers[key] = ledgers.get(key) or Ledger(source.folder, claim, index)
            self.ledger_of.append(ledger)
        self._ledgers = [ledgers[key] for key in sorted(ledgers)]  # in an order that is every job's

    def opened(self, slot: Slot) -> None:
        """Eviction takes the shard least recently opened."""
        if slot.ledger is not None:
            slot.ledger.table[OPENED, slot.row] = time.time_ns()

    def enter(self, slot: Slot) -> None:
        """Enter what is in the folder of the shard now. The caller holds its lock."""
        if slot.ledger is not None:
            sizes = [size_of(slot.ledger.folder / file.basename) or 0 for file in slot.shard.files]
            slot.ledger.table[BYTES, slot.row] = sum(sizes)

    def reserve(self, slot: Slot) -> None:
        """Take room for the shard and create its `part`, evicting others where there is a limit.

        The caller holds its lock. Raises DataError if there is none within a minute in which nobody fetches.
        """
        deadline = time.monotonic() + ROOM_TIMEOUT_S
        while time.monotonic() < deadline:
            with self._sought():
                enough, others_fetch = self._evict_for(slot)
                if enough:
                    if slot.ledger is not None:
                        slot.ledger.table[[BYTES, OPENED], slot.row] = slot.shard.max_bytes, time.time_ns()
                    slot.part.mkdir(parents=True, exist_ok=True)
                    return
            if others_fetch:
                deadline = time.monotonic() + ROOM_TIMEOUT_S  # that ends by itself, and then there is room
            time.sleep(0.05)
        raise DataError(
            f"cache_limit: no room for {slot.shard.raw.basename} within {ROOM_TIMEOUT_S:.0f} s, as the other shards"
            f" here can't be removed; raise cache_limit ({self.limit} bytes)"
        )

    def kept_bytes(self) -> int:
        """Bytes of shards that are not ours to remove."""
        tables = [ledger.read() for ledger in self._ledgers]
        return int(sum((table[BYTES] * table[KEPT]).sum() for table in tables))

    @contextmanager
    def _sought(self) -> Iterator[None]:
        """One process at a time seeks room in a folder."""
        with ExitStack() as locks:
            for ledger in self._ledgers if self.limit is not None else ():
                locks.enter_context(locked(lock_path(ledger.folder, "limit")))
            yield

    def _evict_for(self, slot: Slot) -> tuple[bool, bool]:
        """Whether there is room for the shard now, and whether some of what fills the caches is being fetched."""
        if self.limit is None:
            return True, False
        tables = [ledger.read() for ledger in self._ledgers]
        for ledger, table in zip(self._ledgers, tables, strict=True):
            if ledger is slot.ledger:
                table[BYTES, slot.row] = 0  # what is there of the shard itself counts as the whole shard
        surplus = int(sum(table[BYTES].sum() for table in tables)) + slot.shard.max_bytes - self.limit
        fetching = False
        for ledger, oldest in _oldest_first(self._ledgers, tables) if surplus > 0 else ():
            if surplus <= 0:
                break
            freed = _evict(ledger, oldest)
            fetching |= freed is None
            surplus -= freed or 0
        return surplus <= 0, fetching


def _oldest_first(ledgers: Sequence[Ledger], tables: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Ledger, int]]:
    """Rows of what is ours and takes room, the one opened longest ago first."""
    rows = [np.flatnonzero((table[BYTES] > 0) & (table[KEPT] == 0)) for table in tables]
    opened = np.concatenate([table[OPENED, chosen] for table, chosen in zip(tables, rows, strict=True)])
    whose = np.repeat(np.arange(len(rows)), [len(chosen) for chosen in rows])
    joined = np.concatenate(rows)
    for place in np.argsort(opened, kind="stable").tolist():
        yield ledgers[whose[place]], int(joined[place])


def _evict(ledger: Ledger, row: int) -> int | None:
    """Remove the shard's files. Returns the bytes freed, None if it is being fetched, 0 if they can't be.

    Whatever the table says, which other processes write too: a file that is not ours stays.
    """
    shard = ledger.index[row]
    if not all(ledger.claim.may_remove(file.basename) for file in shard.files):
        return 0
    with locked(lock_path(ledger.folder, shard.raw.basename), wait=False) as free:
        if not free:
            return None
        before = int(ledger.table[BYTES, row])
        try:
            _remove(ledger.folder, shard)
        except PermissionError:  # another user's
            return 0
        ledger.table[BYTES, row] = 0
        return before


def _remove(folder: Path, shard: Shard) -> None:
    for file in shard.files:
        (folder / file.basename).unlink(missing_ok=True)
    shutil.rmtree(part_path(folder, shard.raw.basename), ignore_errors=True)
