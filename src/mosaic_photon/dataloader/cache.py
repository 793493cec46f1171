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
from pathlib import Path

import numpy as np

from mosaic_photon.dataloader.fetch import Source, download, no_access, unpack
from mosaic_photon.dataloader.files import best_hash, fault_of, locked, mtime_of, size_of
from mosaic_photon.dataloader.index import INDEX, LOCKS, DataError, Shard, ShardFile
from mosaic_photon.dataloader.patience import Outage, patiently
from mosaic_photon.dataloader.shards import Index, Shards

logger = logging.getLogger(__name__)

ROOM_TIMEOUT_S = 60.0
SAY_EVERY_S = 10.0


class ShardCache:
    """The shards of a dataset's sources on this node. Safe to use from any thread and process, and after a fork."""

    def __init__(self, sources: Sequence[Source], indexes: Sequence[Index], limit: int | None = None) -> None:
        """`limit` bounds the bytes on disk. Raises DataError for a limit too small or a hash that the index lacks."""
        self.sources = tuple(sources)
        self.shards = Shards(indexes)
        self.source_of = np.repeat(np.array(self.sources, object), [len(index) for index in indexes])
        self.limit = limit
        self._fetched, self._said = 0, time.monotonic()
        self._failed: dict[int, tuple[float, str]] = {}  # shard -> when the last attempt to fetch it failed, and how
        self._check_limit()
        self._check_hashes_known()

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
            with locked(_lock_path(source, shard), wait=False) as free:
                if free and not self.is_here(shard_id):
                    self._obtain(source, shard)
        except OSError as error:
            raise no_access(source, error) from error

    def _open_fetched(self, source: Source, shard_id: int, asked: float) -> int:
        shard = self.shards[shard_id]
        try:
            with locked(_lock_path(source, shard)):
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
        path = self.source_of[shard_id].folder / self.shards[shard_id].raw.basename
        return size_of(path) == self.shards[shard_id].raw.bytes

    def check(self, hashes: bool = False, part: slice = slice(None)) -> None:
        """Compare the files of a part of the shards with the index: sizes, with `hashes` also content.

        A damaged file is removed if the remote can give it again; otherwise, or if it is missing, DataError is raised.
        Parts of files that a killed job left are removed.
        """
        total, done, said = sum(shard.raw.bytes for shard in self.shards[part]), 0, time.monotonic()
        for source, shard in zip(self.source_of[part], self.shards[part], strict=True):
            try:
                self._check_shard(source, shard, hashes)
            except OSError as error:
                raise no_access(source, error) from error
            done += shard.raw.bytes
            if hashes and time.monotonic() - said > SAY_EVERY_S:
                logger.info(f"Verified {done / 1e9:.1f} of {total / 1e9:.1f} GB of cached shards")
                said = time.monotonic()

    def _check_shard(self, source: Source, shard: Shard, hashes: bool) -> None:
        _sweep(source, shard)
        here = files_here(source, shard)
        if not here and not source.remote:
            raise DataError(
                f"{source.folder / shard.stored.basename}: missing; {INDEX} lists it"
                f" and stream {source.name!r} has no remote to fetch it from"
            )
        for file in here:
            if not _content_fault(source, file, hashes):
                continue
            # Looked at again under the lock: another process may have fetched it. Data without a remote has no lock.
            with locked(_lock_path(source, shard)) if source.remote else nullcontext():
                fault = _content_fault(source, file, hashes) if file in files_here(source, shard) else ""
                if fault:
                    self._discard(source, file, fault)

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

    def _check_hashes_known(self) -> None:
        for number, kind in zip(self.shards.stream_of_kind, self.shards.kinds, strict=True):
            source = self.sources[number]
            if source.validate_hash and source.validate_hash not in kind.stored_hashes:
                known = ", ".join(sorted(kind.stored_hashes)) or "none"
                raise DataError(
                    f"validate_hash: {source.validate_hash!r} was not computed for stream {source.name!r};"
                    f" its index has: {known}"
                )

    def _open_whole(self, shard_id: int) -> int | None:
        source, shard = self.source_of[shard_id], self.shards[shard_id]
        try:
            fd = os.open(source.folder / shard.raw.basename, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.fstat(fd).st_size == shard.raw.bytes:
            if self.limit is not None and source.remote:
                os.utime(fd)  # eviction takes the shard least recently opened
            return fd
        os.close(fd)
        return None

    def _discard(self, source: Source, file: ShardFile, fault: str) -> None:
        path = source.folder / file.basename
        if not source.remote:
            raise DataError(f"{path}: {fault}, and stream {source.name!r} has no remote to fetch it from again")
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
            self._obtain(source, self.shards[shard_id])
        except Outage:  # each who waits has patience of its own
            raise
        except DataError as error:
            self._failed[shard_id] = time.monotonic(), str(error)
            raise

    def _obtain(self, source: Source, shard: Shard) -> None:
        """Bring the raw file into the folder. The caller holds the shard's lock."""
        raw = source.folder / shard.raw.basename
        if raw.exists():
            self._discard(source, shard.raw, f"has {size_of(raw)} bytes instead of {shard.raw.bytes}")
        part = _part_path(source, shard)
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        if self.limit is not None:
            self._make_room(shard, part)
        part.mkdir(parents=True, exist_ok=True)
        try:
            stored = self._fetch(source, shard.stored, part / "stored")
            if shard.zip:
                unpack(shard, stored, part / "raw", source)
                if source.keep_zip and stored.parent == part:
                    os.replace(stored, source.folder / shard.zip.basename)
                elif not source.keep_zip:
                    stored.unlink()
                stored = part / "raw"
            os.replace(stored, raw)
            self._say_progress(shard)
        except OSError as error:
            raise no_access(source, error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _say_progress(self, shard: Shard) -> None:
        self._fetched += shard.stored.bytes
        if time.monotonic() - self._said > SAY_EVERY_S:
            logger.info(f"Fetched {self._fetched / 1e9:.2f} GB of shards so far")
            self._said = time.monotonic()

    def _fetch(self, source: Source, file: ShardFile, target: Path) -> Path:
        """The whole, checked file: the one in the folder if it is good, else downloaded to `target`."""
        path = source.folder / file.basename
        if path.exists():
            fault = fault_of(path, file, source.validate_hash)
            if not fault:
                return path
            self._discard(source, file, fault)
        if source.remote is None:
            raise DataError(f"{path}: missing, and stream {source.name!r} has no remote to fetch it from")
        download(source, file.basename, target, file)
        return target

    def _make_room(self, shard: Shard, part: Path) -> None:
        """Evict shards until `shard` fits under the limit, then reserve its place by creating `part`."""
        assert self.limit is not None
        deadline = time.monotonic() + ROOM_TIMEOUT_S
        while time.monotonic() < deadline:
            with locked(self.sources[0].folder / LOCKS / "limit"):
                if self._evict_down_to(self.limit - shard.max_bytes, keep=shard):
                    part.mkdir(parents=True, exist_ok=True)
                    return
            others = (pair for pair in zip(self.source_of, self.shards, strict=True) if pair[1] is not shard)
            if any(_part_path(*other).exists() for other in others):
                deadline = time.monotonic() + ROOM_TIMEOUT_S  # a fetch under way ends by itself, and then there is room
            time.sleep(0.05)
        raise DataError(
            f"cache_limit: no room for {shard.raw.basename} within {ROOM_TIMEOUT_S:.0f} s, as the other shards here are"
            f" in use or have no remote; raise cache_limit ({self.limit} bytes)"
        )

    def _evict_down_to(self, target: int, keep: Shard) -> bool:
        used, evictable = 0, []
        for source, shard in zip(self.source_of, self.shards, strict=True):
            paths = [source.folder / file.basename for file in (shard.raw, shard.zip) if file]
            # Before the sizes: a fetch that ends in between is counted by one or the other.
            reserved = shard is not keep and _part_path(source, shard).exists()
            sizes = [size_of(path) or 0 for path in paths]
            used += shard.max_bytes if reserved else sum(sizes)
            if source.remote and shard is not keep and (reserved or any(sizes)):
                evictable.append((mtime_of(paths[0]), source, shard, sum(sizes), reserved))
        for _, source, shard, size, reserved in sorted(evictable, key=lambda item: item[0]):
            if used <= target:
                break
            with locked(_lock_path(source, shard), wait=False) as free:
                if free:
                    _evict(source, shard)
                    used -= shard.max_bytes if reserved else size
        return used <= target


def _content_fault(source: Source, file: ShardFile, hashes: bool) -> str:
    return fault_of(source.folder / file.basename, file, best_hash(file) if hashes else None)


def files_here(source: Source, shard: Shard) -> list[ShardFile]:
    """The shard's files that are on this node, whole or not."""
    return [file for file in (shard.raw, shard.zip) if file and (source.folder / file.basename).exists()]


def _evict(source: Source, shard: Shard) -> None:
    for file in (shard.raw, shard.zip):
        if file:
            (source.folder / file.basename).unlink(missing_ok=True)
    shutil.rmtree(_part_path(source, shard), ignore_errors=True)


def _sweep(source: Source, shard: Shard) -> None:
    """Remove what a killed process left of the shard; a live one holds its lock."""
    part = _part_path(source, shard)
    if part.exists():
        with locked(_lock_path(source, shard), wait=False) as free:
            if free:
                shutil.rmtree(part, ignore_errors=True)


def _part_path(source: Source, shard: Shard) -> Path:
    path = source.folder / shard.raw.basename
    return path.with_name(path.name + ".part")


def _lock_path(source: Source, shard: Shard) -> Path:
    return source.folder / LOCKS / shard.raw.basename.replace("/", "%")
