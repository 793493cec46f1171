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
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_photon.dataloader.shards.claim import PARTS, files_of, in_use, lock_path, part_path
from mosaic_photon.dataloader.shards.fetch import Source, download, no_access, unpack
from mosaic_photon.dataloader.shards.files import best_hash, fault_of, size_of
from mosaic_photon.dataloader.shards.index import INDEX, LOCKS, DataError, Shard, ShardFile
from mosaic_photon.dataloader.shards.ledger import list_folder
from mosaic_photon.dataloader.shards.once import once_a_run
from mosaic_photon.dataloader.shards.patience import Outage, patiently
from mosaic_photon.dataloader.shards.room import Room
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
        self.source_of = np.repeat(np.array(self.sources, object), [len(index) for index in indexes])
        self.limit = limit
        self.complete = not any(source.cache for source in sources)
        """Whether nothing has to be fetched, as far as `check` and `open` have seen."""
        self._fetched, self._last_report = 0, time.monotonic()
        self._failed: dict[int, tuple[float, str]] = {}  # shard -> when the last attempt to fetch it failed, and how
        self._check_limit()
        self._check_hashes_known()
        self._start()

    def _start(self) -> None:
        """What a spawned process makes anew."""
        try:
            self._room = Room(self.sources, self.shards, self.limit)
        except OSError as error:
            raise no_access(next(source for source in self.sources if source.cache), error) from error
        self._holds = [held for source in self.sources if source.cache and (held := in_use(source.cache))]

    def open(self, shard_id: int) -> int:
        """A descriptor of the whole raw file, fetched first where needed: patiently, if its remote does not answer.

        Raises DataError if that can't be done.
        """
        fd = self._open_whole(shard_id)
        if fd is None:
            asked = time.monotonic()
            fd = patiently(self.source_of[shard_id], lambda source: self._open_fetched(source, shard_id, asked))
        return fd

    def ensure(self, shard_id: int) -> None:
        """Fetch the shard unless it is here."""
        os.close(self.open(shard_id))

    def prefetch(self, shard_id: int) -> None:
        """Fetch the shard unless it is here or being fetched. Raises Outage as soon as its remote does not answer."""
        source, shard = self.source_of[shard_id], self.shards[shard_id]
        try:
            with locked(_lock_of(source, shard), wait=False) if source.cache else nullcontext() as free:
                if free and not self.is_here(shard_id):
                    self._obtain(source, shard_id)
        except OSError as error:
            raise no_access(source, error) from error

    def _open_fetched(self, source: Source, shard_id: int, asked: float) -> int:
        shard = self.shards[shard_id]
        if not source.cache:
            raise _lost(source, shard)
        try:
            with locked(_lock_of(source, shard)):
                fd = self._open_whole(shard_id)
                if fd is None:
                    self._obtain_unless_failed(source, shard_id, asked)
                    fd = self._open_whole(shard_id)
        except OSError as error:
            raise no_access(source, error) from error
        if fd is None:
            raise DataError(f"{source.folder / shard.raw.basename}: vanished right after it was fetched")
        return fd

    def is_here(self, shard_id: int) -> bool:
        """Whether the raw file is on this node with its full size."""
        raw = self.shards[shard_id].raw
        return any(size_of(folder / raw.basename) == raw.bytes for folder in _folders(self.source_of[shard_id]))

    def check(self, hashes: bool = False, part: slice = slice(None)) -> None:
        """Compare the files that are here with the index: their sizes, and with `hashes` the content of a part of them.

        A damaged file is removed if it is ours and the remote can give it again; otherwise, and if data without a
        remote lacks one, DataError is raised. What a killed job left is removed. One process of a node lists the
        folders, once, and asks for the size of each shard that is there: a start needs it, so that what is damaged or
        missing is found before the first step, and so that a complete cache starts no fetching threads.
        """
        answers = [once_a_run(self._survey_key(n), partial(self._surveyed, n)) for n in range(len(self.sources))]
        for answer in answers:
            if answer["error"]:
                raise DataError(answer["error"])
        self.complete = all(answer["complete"] for answer in answers)
        if not self.complete:
            self._check_room_beside_kept()
        if hashes:
            self._check_hashes(part)

    def _survey_key(self, number: int) -> str:
        source = self.sources[number]
        return f"survey {os.path.realpath(source.folder)} {source.data and os.path.realpath(source.data)}"

    def _surveyed(self, number: int) -> dict[str, Any]:
        try:
            return {"error": "", "complete": self._survey(number)}
        except DataError as error:
            return {"error": str(error)}
        except OSError as error:
            return {"error": str(no_access(self.sources[number], error))}

    def _survey(self, number: int) -> bool:
        """Look at all files of a source; returns whether it is complete."""
        source, index, ledger = self.sources[number], self.shards.indexes[number], self._room.ledger(number)
        if source.cache:
            _sweep(source.cache)
        listings = [ledger.survey().first(len(index)) if ledger else list_folder(source.folder, index)]
        if source.data:
            listings.append(list_folder(source.data, index))
        for here in listings:
            wrong = ((here.raw >= 0) & (here.raw != index.raw_bytes)) | (
                (here.zipped >= 0) & (here.zipped != index.zip_bytes)
            )
            for row in np.flatnonzero(wrong).tolist():
                self._check_shard(self.shards.shard_id(number, row), hashes=False)
        if source.data or not source.remote:
            missing = np.all([(here.raw < 0) & (here.zipped < 0) for here in listings], axis=0)
            if missing.any():
                raise _lost(source, index[int(np.argmax(missing))])
        return bool(np.any([here.raw == index.raw_bytes for here in listings], axis=0).all())

    def _check_hashes(self, part: slice) -> None:
        here = [shard_id for shard_id in range(len(self.shards))[part] if files_here(*self._pair(shard_id))]
        total, done, last_report = sum(self.shards[shard_id].raw.bytes for shard_id in here), 0, time.monotonic()
        for shard_id in here:
            try:
                self._check_shard(shard_id, hashes=True)
            except OSError as error:
                raise no_access(self.source_of[shard_id], error) from error
            done += self.shards[shard_id].raw.bytes
            if time.monotonic() - last_report > SAY_EVERY_S:
                logger.info(f"Verified {done / 1e9:.1f} of {total / 1e9:.1f} GB of cached shards")
                last_report = time.monotonic()

    def _check_shard(self, shard_id: int, hashes: bool) -> None:
        source, shard = self._pair(shard_id)
        for path, file in files_here(source, shard):
            if not _content_fault(path, file, hashes):
                continue
            # Looked at again under the lock: another process may have fetched it. Data without a remote has no lock.
            with locked(_lock_of(source, shard)) if source.cache else nullcontext():
                fault = _content_fault(path, file, hashes) if path.exists() else ""
                if fault:
                    self._discard(shard_id, path, file, fault)
                    self._room.enter(shard_id)
                    self.complete = False

    def _pair(self, shard_id: int) -> tuple[Source, Shard]:
        return self.source_of[shard_id], self.shards[shard_id]

    def close(self) -> None:
        """Drop connections; a later fetch opens new ones. Called in each worker process too, after the fork."""
        for source in self.sources:
            if source.downloader is not None:
                source.downloader.clean_up()

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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_room": None, "_holds": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _open_whole(self, shard_id: int) -> int | None:
        source, shard = self._pair(shard_id)
        for folder in _folders(source):
            try:
                fd = os.open(folder / shard.raw.basename, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            if os.fstat(fd).st_size == shard.raw.bytes:
                self._room.opened(shard_id)
                return fd
            os.close(fd)
        return None

    def _discard(self, shard_id: int, path: Path, file: ShardFile, fault: str) -> None:
        """Remove a damaged file. Raises DataError where it is not ours or can't be fetched again."""
        source = self.source_of[shard_id]
        if not source.cache or path != source.folder / file.basename:
            raise DataError(f"{path}: {fault}, and stream {source.name!r} has no remote to fetch it from again")
        if not self._may_remove(shard_id, file):
            raise DataError(
                f"{path}: {fault}, and it was here before stream {source.name!r} made the folder its cache; remove it,"
                " or set mosaic.adopt_cache = true"
            )
        logger.warning(f"{path}: {fault}; it will be fetched again from {source.remote}")
        path.unlink(missing_ok=True)

    def _obtain_unless_failed(self, source: Source, shard_id: int, asked: float) -> None:
        """Obtain the shard, or raise the error of a thread that failed to since `asked`.

        Threads that want the same shard wait for its lock. With all attempts of the first in vain, more are no use.
        """
        failed, reason = self._failed.get(shard_id, (asked, ""))
        if failed > asked:
            raise DataError(reason)
        try:
            self._obtain(source, shard_id)
        except Outage:  # each who waits has patience of its own
            raise
        except DataError as error:
            self._failed[shard_id] = time.monotonic(), str(error)
            raise

    def _obtain(self, source: Source, shard_id: int) -> None:
        """Bring the raw file into the folder. The caller holds the shard's lock."""
        shard = self.shards[shard_id]
        self.complete = False
        raw = source.folder / shard.raw.basename
        if raw.exists():
            self._discard(shard_id, raw, shard.raw, f"has {size_of(raw)} bytes instead of {shard.raw.bytes}")
        part = _part_of(source, shard)
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        try:
            self._room.reserve(shard_id, part)
            stored = self._fetch(source, shard_id, part / "stored")
            if shard.zip:
                unpack(shard, stored, part / "raw", source)
                if source.keep_zip and stored.parent == part:
                    os.replace(stored, source.folder / shard.zip.basename)
                elif not source.keep_zip and stored.parent == raw.parent and self._may_remove(shard_id, shard.zip):
                    stored.unlink()
                stored = part / "raw"
            raw.parent.mkdir(parents=True, exist_ok=True)
            os.replace(stored, raw)
            self._say_progress(shard)
        except OSError as error:
            raise no_access(source, error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
            self._room.enter(shard_id)

    def _may_remove(self, shard_id: int, file: ShardFile) -> bool:
        """Whether the file in the cache was fetched by us."""
        return self._room.may_remove(self.shards.place(shard_id)[0], file.basename)

    def _say_progress(self, shard: Shard) -> None:
        self._fetched += shard.stored.bytes
        if time.monotonic() - self._last_report > SAY_EVERY_S:
            logger.info(f"Fetched {self._fetched / 1e9:.2f} GB of shards so far")
            self._last_report = time.monotonic()

    def _fetch(self, source: Source, shard_id: int, target: Path) -> Path:
        """The whole, checked file as the remote has it: the folder's if it is good, else fetched to `target`."""
        file = self.shards[shard_id].stored
        path = (source.data or source.folder) / file.basename
        if path.exists():
            fault = fault_of(path, file, source.validate_hash)
            if not fault:
                return path
            self._discard(shard_id, path, file, fault)
        if source.data or not source.remote:
            raise DataError(f"{path}: missing, and stream {source.name!r} has no remote to fetch it from")
        download(source, file.basename, target, file)
        return target


def _content_fault(path: Path, file: ShardFile, hashes: bool) -> str:
    return fault_of(path, file, best_hash(file) if hashes else None)


def _folders(source: Source) -> list[Path]:
    """Where the source's files may lie."""
    return [source.data, source.folder] if source.data else [source.folder]


def files_here(source: Source, shard: Shard) -> list[tuple[Path, ShardFile]]:
    """The shard's files that are on this node, whole or not."""
    places = [(folder / file.basename, file) for folder in _folders(source) for file in files_of(shard)]
    return [(path, file) for path, file in places if path.exists()]


def _lost(source: Source, shard: Shard) -> DataError:
    """The error for a shard of data without a remote that is missing or not whole."""
    path = (source.data or source.folder) / shard.stored.basename
    size = size_of(path)
    what = f"missing; {INDEX} lists it" if size is None else f"has {size} bytes instead of {shard.stored.bytes}"
    return DataError(f"{path}: {what}, and stream {source.name!r} has no remote to fetch it from")


def _sweep(folder: Path) -> None:
    """Remove what killed processes left of shards; live ones hold their locks."""
    parts = folder / PARTS
    for part in list(parts.iterdir()) if parts.is_dir() else ():
        with locked(folder / LOCKS / part.name, wait=False) as free:
            if free:
                shutil.rmtree(part, ignore_errors=True)


def _part_of(source: Source, shard: Shard) -> Path:
    return part_path(source.folder, shard.raw.basename)


def _lock_of(source: Source, shard: Shard) -> Path:
    return lock_path(source.folder, shard.raw.basename)
