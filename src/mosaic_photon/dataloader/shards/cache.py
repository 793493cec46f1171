"""A node's copy of the shards: fetched once, checked, kept under a limit, shared by all processes without a server.

Every process may ask for any shard at any time. One lock file per shard (`flock`, which the kernel drops with
the process that holds it) lets exactly one process fetch it; files get their names only when whole and checked.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_photon import waiting
from mosaic_photon.dataloader.node.once import once_a_run
from mosaic_photon.dataloader.shards.claim import PARTS, in_use
from mosaic_photon.dataloader.shards.fetch import Source, accessing, download, reported, unpack
from mosaic_photon.dataloader.shards.files import best_hash, fault_of, size_of
from mosaic_photon.dataloader.shards.index import LOCKS, DataError, Shard, ShardFile
from mosaic_photon.dataloader.shards.ledger import RAW, ZIP, list_folder
from mosaic_photon.dataloader.shards.patience import Outage, patiently
from mosaic_photon.dataloader.shards.room import Room
from mosaic_photon.dataloader.shards.slot import Slot
from mosaic_photon.dataloader.shards.table import Index, Shards
from mosaic_photon.files import locked

logger = logging.getLogger(__name__)

SAY_EVERY_S = 10.0


class ShardCache:
    """The shards of a dataset's sources on this node. Safe to use from any thread and process, and after a fork."""

    def __init__(self, sources: Sequence[Source], indexes: Sequence[Index], limit: int | None = None) -> None:
        """`limit` bounds the bytes on disk. Raises DataError for a limit too small or a hash that the index lacks."""
        self.sources = tuple(sources)
        self.shards = Shards(indexes)
        self.limit = limit
        self.complete = not any(source.cache for source in sources)
        """Whether nothing has to be fetched, as far as `check` and `open` have seen."""
        self._last_report = time.monotonic()
        self._failed: dict[int, tuple[float, str]] = {}  # shard -> when the last attempt to fetch it failed, and how
        self._check_limit()
        self._check_hashes_known()
        self._start()

    def _start(self) -> None:
        """What a spawned process makes anew."""
        self._room = Room(self.sources, self.shards, self.limit)
        self._holds = [held for source in self.sources if source.cache and (held := in_use(source.cache))]

    def slot(self, shard_id: int) -> Slot:
        """The shard's place on this node."""
        stream, row = self.shards.place(shard_id)
        shard = self.shards.indexes[stream][row]
        return Slot(shard_id, shard, self.sources[stream], self._room.ledger_of[stream], row)

    def open(self, shard_id: int) -> int:
        """A descriptor of the whole raw file, fetched first where needed: patiently, if its remote does not answer.

        Raises DataError if that can't be done.
        """
        slot = self.slot(shard_id)
        fd = self._open_whole(slot)
        if fd is None:
            asked = time.monotonic()
            fd = patiently(slot.source, lambda source: self._open_fetched(replace(slot, source=source), asked))
        return fd

    def ensure(self, shard_id: int) -> None:
        """Fetch the shard unless it is here."""
        os.close(self.open(shard_id))

    def prefetch(self, shard_id: int) -> None:
        """Fetch the shard unless it is here or being fetched. Raises Outage as soon as its remote does not answer."""
        slot = self.slot(shard_id)
        with accessing(slot.source), slot.locked(wait=False) as free:
            if free and not slot.is_here():
                self._obtain(slot)

    def is_here(self, shard_id: int) -> bool:
        """Whether the raw file is on this node with its full size."""
        return self.slot(shard_id).is_here()

    def check(self, hashes: bool = False, part: slice = slice(None)) -> None:
        """Compare the files that are here with the index: their sizes, and with `hashes` the content of a part of them.

        A damaged file is removed if it is ours and the remote can give it again; otherwise, and if data without a
        remote lacks one, DataError is raised. What a killed job left is removed. One process of a node lists the
        folders, once, and asks for the size of each shard that is there: a start needs it, so that what is damaged or
        missing is found before the first step, and so that a complete cache starts no fetching threads.
        """
        answers = []
        for number, source in enumerate(self.sources):
            key = f"survey {os.path.realpath(source.folder)} {source.data and os.path.realpath(source.data)}"
            answers.append(once_a_run(key, partial(reported, source, partial(self._survey, number))))
        for answer in answers:
            if answer["error"]:
                raise DataError(answer["error"])
        self.complete = all(answer["found"] for answer in answers)
        if not self.complete:
            self._check_room_beside_kept()
        if hashes:
            self._check_hashes(part)

    def close(self) -> None:
        """Drop connections; a later fetch opens new ones. Called in each worker process too, after the fork."""
        for source in self.sources:
            if source.downloader is not None:
                source.downloader.clean_up()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_room": None, "_holds": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _survey(self, number: int) -> bool:
        """Look at all files of a source; returns whether it is complete."""
        source, index, ledger = self.sources[number], self.shards.indexes[number], self._room.ledger_of[number]
        if source.cache:
            _sweep(source.cache)
        listings = [ledger.survey()[:, : len(index)] if ledger else list_folder(source.folder, index)]
        if source.data:
            listings.append(list_folder(source.data, index))
        sizes = np.stack(listings)[:, [RAW, ZIP]]  # (folders, 2, shards)
        wrong = (sizes >= 0) & (sizes != np.stack([index.raw_bytes, index.zip_bytes]))
        for row in np.flatnonzero(wrong.any((0, 1))).tolist():
            self._check_shard(self.slot(self.shards.shard_id(number, row)), hashes=False)
        missing = (sizes < 0).all((0, 1))
        if missing.any() and (source.data or not source.remote):
            raise self.slot(self.shards.shard_id(number, int(np.argmax(missing)))).lost()
        return bool((sizes[:, 0] == index.raw_bytes).any(0).all())

    def _check_hashes(self, part: slice) -> None:
        here = [slot for slot in map(self.slot, range(len(self.shards))[part]) if slot.files_here()]
        count, last_report = waiting.verified, time.monotonic()
        count.begin(sum(slot.shard.raw.bytes for slot in here))
        for slot in here:
            with accessing(slot.source):
                self._check_shard(slot, hashes=True)
            count.done += slot.shard.raw.bytes
            if time.monotonic() - last_report > SAY_EVERY_S:
                logger.info(f"Verified {count.done / 1e9:.1f} of {count.total / 1e9:.1f} GB of cached shards")
                last_report = time.monotonic()

    def _check_shard(self, slot: Slot, hashes: bool) -> None:
        for path, file in slot.files_here():
            algorithm = best_hash(file) if hashes else None
            if not fault_of(path, file, algorithm):
                continue
            with slot.locked():  # looked at again: another process may have fetched it
                fault = fault_of(path, file, algorithm) if path.exists() else ""
                if fault:
                    self._discard(slot, path, file, fault)
                    self._room.enter(slot)
                    self.complete = False

    def _check_limit(self) -> None:
        largest = self.shards.largest
        if self.limit is not None and self.limit < 4 * largest:  # Streaming's own rule
            raise DataError(
                f"cache_limit: {self.limit} bytes is less than four times the largest shard, {largest} bytes;"
                f" set at least {4 * largest}"
            )

    def _check_room_beside_kept(self) -> None:
        """Files that are not ours to remove count towards the limit; what must still be fetched needs room, too."""
        taken = self._room.kept_bytes() if self.limit is not None else 0
        needed = 4 * self.shards.largest
        if self.limit is not None and taken and self.limit - taken < needed:
            folders = ", ".join(str(source.cache) for source in self.sources if source.cache)
            raise DataError(
                f"cache_limit: {self.limit} bytes leave no room beside the {taken} bytes that were in {folders} before;"
                f" raise it to {taken + needed}, or set mosaic.adopt_cache = true, which makes them ours to remove"
            )

    def _check_hashes_known(self) -> None:
        for number, kind in zip(self.shards.stream_of_kind, self.shards.kinds, strict=True):
            source = self.sources[number]
            if source.validate_hash and source.validate_hash not in kind.stored_hashes:
                known = ", ".join(sorted(kind.stored_hashes)) or "none"
                raise DataError(
                    f"validate_hash: {source.validate_hash!r} was not computed for stream {source.name!r};"
                    f" its index has: {known}"
                )

    def _open_whole(self, slot: Slot) -> int | None:
        for folder in slot.folders():
            try:
                fd = os.open(folder / slot.shard.raw.basename, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            if os.fstat(fd).st_size == slot.shard.raw.bytes:
                self._room.opened(slot)
                return fd
            os.close(fd)
        return None

    def _open_fetched(self, slot: Slot, asked: float) -> int:
        if not slot.source.cache:
            raise slot.lost()
        with accessing(slot.source), slot.locked():
            fd = self._open_whole(slot)
            if fd is None:
                self._obtain_unless_failed(slot, asked)
                fd = self._open_whole(slot)
        if fd is None:
            raise DataError(f"{slot.raw}: vanished right after it was fetched")
        return fd

    def _obtain_unless_failed(self, slot: Slot, asked: float) -> None:
        """Obtain the shard, or raise the error of a thread that failed to since `asked`.

        Threads that want the same shard wait for its lock. With all attempts of the first in vain, more are no use.
        """
        failed, reason = self._failed.get(slot.shard_id, (asked, ""))
        if failed > asked:
            raise DataError(reason)
        try:
            self._obtain(slot)
        except Outage:  # each who waits has patience of its own
            raise
        except DataError as error:
            self._failed[slot.shard_id] = time.monotonic(), str(error)
            raise

    def _obtain(self, slot: Slot) -> None:
        """Bring the raw file into the folder. The caller holds the shard's lock."""
        source, shard, raw, part = slot.source, slot.shard, slot.raw, slot.part
        self.complete = False
        waiting.fetched.begin()
        if raw.exists():
            self._discard(slot, raw, shard.raw, f"has {size_of(raw)} bytes instead of {shard.raw.bytes}")
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        try:
            with accessing(source):
                self._room.reserve(slot)
                stored = self._fetch(slot, part / "stored")
                if shard.zip:
                    unpack(shard, stored, part / "raw", source)
                    if source.keep_zip and stored.parent == part:
                        os.replace(stored, source.folder / shard.zip.basename)
                    elif not source.keep_zip and stored.parent == raw.parent and slot.may_remove(shard.zip):
                        stored.unlink()
                    stored = part / "raw"
                raw.parent.mkdir(parents=True, exist_ok=True)
                os.replace(stored, raw)
            self._say_progress(shard)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            self._room.enter(slot)

    def _fetch(self, slot: Slot, target: Path) -> Path:
        """The whole, checked file as the remote has it: the folder's if it is good, else fetched to `target`."""
        source, file = slot.source, slot.shard.stored
        path = (source.data or source.folder) / file.basename
        if path.exists():
            fault = fault_of(path, file, source.validate_hash)
            if not fault:
                return path
            self._discard(slot, path, file, fault)
        if source.data or not source.remote:
            raise DataError(f"{path}: missing, and stream {source.name!r} has no remote to fetch it from")
        download(source, file.basename, target, file)
        return target

    def _discard(self, slot: Slot, path: Path, file: ShardFile, fault: str) -> None:
        """Remove a damaged file. Raises DataError where it is not ours or can't be fetched again."""
        source = slot.source
        if not source.cache or path != source.folder / file.basename:
            raise DataError(f"{path}: {fault}, and stream {source.name!r} has no remote to fetch it from again")
        if not slot.may_remove(file):
            raise DataError(
                f"{path}: {fault}, and it was here before stream {source.name!r} made the folder its cache; remove it,"
                " or set mosaic.adopt_cache = true"
            )
        logger.warning(f"{path}: {fault}; it will be fetched again from {source.remote}")
        path.unlink(missing_ok=True)

    def _say_progress(self, shard: Shard) -> None:
        waiting.fetched.done += shard.stored.bytes
        if time.monotonic() - self._last_report > SAY_EVERY_S:
            logger.info(f"Fetched {waiting.fetched.done / 1e9:.2f} GB of shards so far")
            self._last_report = time.monotonic()


def _sweep(folder: Path) -> None:
    """Remove what killed processes left of shards; live ones hold their locks."""
    parts = folder / PARTS
    for part in list(parts.iterdir()) if parts.is_dir() else ():
        with locked(folder / LOCKS / part.name, wait=False) as free:
            if free:
                shutil.rmtree(part, ignore_errors=True)
