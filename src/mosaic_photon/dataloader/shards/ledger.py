"""What a cache folder holds, a column a shard of its index, in a file that all processes of all jobs on the node map.

Who seeks room, or wants to know which shard was opened longest ago, asks the ledger; the folder itself is listed when a
run starts. Columns are written with the lock of their shard held, the whole with the folder's lock `limit`.
"""

from __future__ import annotations

import os
from collections.abc import Set
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.shards.claim import PARTS, Claim, lock_path
from mosaic_photon.dataloader.shards.files import names_in
from mosaic_photon.dataloader.shards.index import RESERVED, DataError
from mosaic_photon.dataloader.shards.table import Index
from mosaic_photon.files import OWN, locked, write_whole

LEDGER = f"{OWN}ledger-"
BYTES, OPENED, KEPT = range(3)
"""Rows of the table: bytes on disk or reserved, ns of the last opening, whether the shard's files are not ours."""
RAW, ZIP, TIME = range(3)
"""Rows of a listing: sizes of the raw and the compressed file, -1 where there is none; when one was written, in ns."""


def list_folder(folder: Path, index: Index) -> NDArray[np.int64]:
    """Which of the index's files the folder holds, of shape (3, shards).

    Costs what is there, and one pass over the names.
    """
    found = np.full((3, len(index)), [[-1], [-1], [0]], np.int64)
    here = {f"{parent}{name}" for parent in index.folders() for name in names_in(folder / parent)}
    here = {name for name in here if name not in RESERVED and not name.startswith(OWN)}
    for row, names in enumerate(index.names()) if here else ():
        for which, name in zip((RAW, ZIP), names, strict=True):
            if name in here:
                with suppress(FileNotFoundError):  # evicted meanwhile, or a link to nothing
                    entry = os.stat(f"{folder}/{name}")
                    found[which, row] = entry.st_size
                    found[TIME, row] = found[TIME, row] or entry.st_mtime_ns
    return found


class Ledger:
    """The ledger of one cache folder for one index."""

    def __init__(self, folder: Path, claim: Claim, index: Index) -> None:
        """Made of what the folder holds where there is none yet. Raises OSError, and DataError for another index.

        Jobs that read only the first shards of the index share the ledger with those that read all.
        """
        self.folder, self.claim, self.index = folder, claim, index.whole
        self._path, shape = folder / f"{LEDGER}{claim.index}", (3, len(self.index))
        with locked(lock_path(folder, "limit")):
            if not self._path.exists():  # written, not only made as long: its room on the disk is taken now
                table = np.zeros(shape, np.int64)
                self._enter(table, [])
                write_whole(self._path, table.tobytes())
            if self._path.stat().st_size != 24 * len(self.index):  # columns would be taken for others
                raise DataError(
                    f"{folder}: another job has fetched a newer index meanwhile; start this one again. If that does"
                    f" not help, {self._path.name} there is damaged: remove it"
                )
            self.table: NDArray[np.int64] = np.memmap(self._path, np.int64, "r+", shape=shape).view(np.ndarray)
            """As it is now, int64 of shape (3, shards)."""

    def read(self) -> NDArray[np.int64]:
        """The table at this moment."""
        return self.table.copy()

    def survey(self) -> NDArray[np.int64]:
        """List the folder and enter what is there; ledgers of other indexes are removed."""
        for path in self.folder.glob(f"{LEDGER}*"):
            if path != self._path:
                path.unlink(missing_ok=True)
        with locked(lock_path(self.folder, "limit")):  # shards in PARTS are being fetched, or were by a killed process
            return self._enter(self.table, self._rows_of({unquote(name) for name in names_in(self.folder / PARTS)}))

    def _rows_of(self, names: Set[str]) -> list[int]:
        """Of the shards that have one of the files."""
        return [row for row, files in enumerate(self.index.names()) if not names.isdisjoint(files)] if names else []

    def _enter(self, table: NDArray[np.int64], reserved: list[int]) -> NDArray[np.int64]:
        """List the folder and write all of the table. What was reserved before that may be a whole file by now.

        Other jobs evict by the table as this process leaves it if it is killed at any line of this. So all is computed
        first; each element of `KEPT` goes from its old value to its new one at once; and `BYTES`, without which nothing
        is evicted, comes after it.
        """
        kept = np.zeros_like(table[KEPT])
        kept[self._rows_of(self.claim.kept)] = 1
        listing = list_folder(self.folder, self.index)
        size = listing[[RAW, ZIP]].clip(0).sum(0)
        size[reserved] = self.index.max_bytes[reserved]
        table[KEPT] = kept
        np.copyto(table[OPENED], listing[TIME], where=table[OPENED] == 0)
        table[BYTES] = size
        return listing
