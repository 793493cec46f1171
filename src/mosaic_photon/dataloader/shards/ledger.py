"""What a cache folder holds, a row a shard of its index, in a file that all processes of all jobs on the node share.

Who seeks room, or wants to know which shard was opened longest ago, asks the ledger; the folder itself is listed when a
run starts. Rows are written with the lock of their shard held, the whole with the folder's lock `limit`.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.shards.claim import PARTS, Claim, lock_path
from mosaic_photon.dataloader.shards.index import RESERVED, DataError
from mosaic_photon.dataloader.shards.table import Index
from mosaic_photon.files import OWN, locked, write_whole

LEDGER = f"{OWN}ledger-"
BYTES, OPENED, KEPT = range(3)
"""Columns of int64: bytes on disk or reserved, ns of the last opening, whether the shard's files are not ours."""


@dataclass(frozen=True)
class Listing:
    """Sizes of the shards' files in a folder, -1 where there is none, and times of their raw files in ns."""

    raw: NDArray[np.int64]
    zipped: NDArray[np.int64]
    times: NDArray[np.int64]

    @property
    def bytes(self) -> NDArray[np.int64]:
        """Of each shard's files together."""
        return self.raw.clip(0) + self.zipped.clip(0)

    def first(self, count: int) -> Listing:
        """Of the first shards alone."""
        return Listing(self.raw[:count], self.zipped[:count], self.times[:count])


def list_folder(folder: Path, index: Index) -> Listing:
    """Which of the index's files the folder holds. Costs what is there, and one pass over the names."""
    sizes = np.full((2, len(index)), -1, np.int64)
    times = np.zeros(len(index), np.int64)
    here = {f"{parent}{name}" for parent in index.folders() for name in _names(folder / parent)}
    here = {name for name in here if name not in RESERVED and not name.startswith(OWN)}
    for row, names in enumerate(index.names()) if here else ():
        for place, name in enumerate(names):
            if name in here:
                with suppress(FileNotFoundError):  # evicted meanwhile, or a link to nothing
                    found = os.stat(f"{folder}/{name}")
                    sizes[place, row] = found.st_size
                    times[row] = times[row] or found.st_mtime_ns
    return Listing(sizes[0], sizes[1], times)


def _names(folder: Path) -> list[str]:
    """Of what the folder holds; none if there is no such folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


class Ledger:
    """The ledger of one cache folder for one index."""

    def __init__(self, folder: Path, claim: Claim, index: Index) -> None:
        """Made of what the folder holds where there is none yet. Raises OSError, and DataError for another index.

        Jobs that read only the first shards of the index share the ledger with those that read all.
        """
        self.folder, self.claim, self.index = folder, claim, index.whole
        self._path = folder / f"{LEDGER}{claim.index}"
        with locked(lock_path(folder, "limit")):
            new = not self._path.exists()
            if new:  # its room is taken now, not when a row is entered
                write_whole(self._path, np.zeros((3, len(self.index)), np.int64).tobytes())
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._fd).atexit = False  # a thread may use it to the process's end
            if os.fstat(self._fd).st_size != 24 * len(self.index):  # rows would be taken for others
                raise DataError(f"{folder}: another job has fetched a newer index meanwhile; start this one again")
            if new:
                self._enter([])

    def read(self) -> NDArray[np.int64]:
        """All rows as they are now, of shape (3, shards)."""
        table = np.empty((3, len(self.index)), np.int64)
        os.preadv(self._fd, [table], 0)  # type: ignore[list-item]  # an array is a buffer
        return table

    def read_one(self, column: int, row: int) -> int:
        """One value as it is now."""
        return int(struct.unpack("=q", os.pread(self._fd, 8, 8 * (column * len(self.index) + row)))[0])

    def set(self, column: int, row: int, value: int) -> None:
        """Enter one value."""
        os.pwrite(self._fd, struct.pack("=q", value), 8 * (column * len(self.index) + row))

    def survey(self) -> Listing:
        """List the folder and enter what is there; ledgers of other indexes are removed."""
        for path in self.folder.glob(f"{LEDGER}*"):
            if path != self._path:
                path.unlink(missing_ok=True)
        with locked(lock_path(self.folder, "limit")):
            return self._enter(self._fetches())

    def _fetches(self) -> list[int]:
        """Rows of shards that are being fetched, or were by a process that was killed."""
        try:
            return self._rows_of({unquote(name) for name in os.listdir(self.folder / PARTS)})
        except FileNotFoundError:
            return []

    def _rows_of(self, names: Set[str]) -> list[int]:
        """Rows of the shards that have one of the files."""
        return [row for row, files in enumerate(self.index.names()) if not names.isdisjoint(files)] if names else []

    def _enter(self, reserved: list[int]) -> Listing:
        """List the folder and write all rows. What was reserved before that may be a whole file by now."""
        listing = list_folder(self.folder, self.index)
        table = self.read()
        table[BYTES] = listing.bytes
        table[BYTES, reserved] = self.index.max_bytes[reserved]
        table[OPENED] = np.where(table[OPENED] == 0, listing.times, table[OPENED])
        table[KEPT] = 0
        table[KEPT, self._rows_of(self.claim.kept)] = 1
        os.pwrite(self._fd, table.tobytes(), 0)
        return listing
