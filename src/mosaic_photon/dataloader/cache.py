"""A node's copy of the shards: fetched once, checked, kept under a limit, shared by all processes without a server.

Every process may ask for any shard at any time. One lock file per shard (`flock`, which the kernel drops with
the process that holds it) lets exactly one process fetch it; files get their names only when whole and checked.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic_photon.dataloader.index import INDEX, DataError, Shard, ShardFile, parse_index, read_index

logger = logging.getLogger(__name__)

LOCKS = ".locks"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_FOR_US = {"403", "404", "AccessDenied", "NoSuchKey", "NoSuchBucket"}
ROOM_TIMEOUT_S = 60.0
SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class Source:
    """One stream: the folder of its files on this node, and the remote they come from (None: only the folder)."""

    name: str
    folder: Path
    remote: str | None = None
    attempts: int = 3
    timeout: float = 60.0
    """Seconds without data before a download fails."""
    validate_hash: str | None = None
    keep_zip: bool = False
    downloader: Any = None
    """Streaming's CloudDownloader for the remote."""


class ShardCache:
    """The shards of a dataset's sources on this node. Safe to use from any thread and process, and after a fork."""

    def __init__(self, sources: Sequence[Source], indexes: Sequence[list[Shard]], limit: int | None = None) -> None:
        """`limit` bounds the bytes on disk. Raises DataError for a limit too small or a hash that the index lacks."""
        self.sources = tuple(sources)
        self.shards = [shard for index in indexes for shard in index]
        self.source_of = [source for source, index in zip(sources, indexes, strict=True) for _ in index]
        self.limit = limit
        self._fetched, self._said = 0, time.monotonic()
        self._check_limit()
        self._check_hashes_known()

    def open(self, shard_id: int) -> int:
        """A descriptor of the whole raw file, fetched first where needed. Raises DataError if that can't be done."""
        fd = self._open_whole(shard_id)
        if fd is not None:
            return fd
        source, shard = self.source_of[shard_id], self.shards[shard_id]
        try:
            with _locked(_lock_path(source, shard)):
                fd = self._open_whole(shard_id)
                if fd is None:
                    self._obtain(source, shard)
                    fd = self._open_whole(shard_id)
        except OSError as error:
            raise _no_access(source, error) from error
        if fd is None:
            raise DataError(f"{source.folder / shard.raw.basename}: vanished right after it was fetched")
        return fd

    def ensure(self, shard_id: int) -> None:
        """Fetch the shard unless it is here."""
        os.close(self.open(shard_id))

    def is_here(self, shard_id: int) -> bool:
        """Whether the raw file is on this node with its full size."""
        path = self.source_of[shard_id].folder / self.shards[shard_id].raw.basename
        return _size(path) == self.shards[shard_id].raw.bytes

    def check(self, hashes: bool = False, part: slice = slice(None)) -> None:
        """Compare the files of a part of the shards with the index: sizes, with `hashes` also content.

        A damaged file is removed if the remote can give it again; otherwise, or if it is missing, DataError is raised.
        Parts of files that a killed job left are removed.
        """
        total, done, said = sum(shard.raw.bytes for shard in self.shards[part]), 0, time.monotonic()
        for source, shard in zip(self.source_of[part], self.shards[part], strict=True):
            _sweep(source, shard)
            here = [file for file in (shard.raw, shard.zip) if file and (source.folder / file.basename).exists()]
            if not here and not source.remote:
                raise DataError(
                    f"{source.folder / shard.stored.basename}: missing; {INDEX} lists it"
                    f" and stream {source.name!r} has no remote to fetch it from"
                )
            for file in here:
                fault = _fault(source.folder / file.basename, file, _best_hash(file) if hashes else None)
                if fault:
                    self._discard(source, file, fault)
            done += shard.raw.bytes
            if hashes and time.monotonic() - said > SAY_EVERY_S:
                logger.info(f"Verified {done / 1e9:.1f} of {total / 1e9:.1f} GB of cached shards")
                said = time.monotonic()

    def close(self) -> None:
        """Drop connections; a later fetch opens new ones. Called in each worker process too, after the fork."""
        for source in self.sources:
            if source.downloader is not None:
                source.downloader.clean_up()

    def _check_limit(self) -> None:
        largest = max(shard.max_bytes for shard in self.shards)
        if self.limit is not None and self.limit < 4 * largest:  # Streaming's own rule
            raise DataError(
                f"cache_limit: {self.limit} bytes is less than four times the largest shard, {largest} bytes;"
                f" set at least {4 * largest}"
            )

    def _check_hashes_known(self) -> None:
        for source, shard in zip(self.source_of, self.shards, strict=True):
            if source.validate_hash and source.validate_hash not in shard.stored.hashes:
                known = ", ".join(sorted(shard.stored.hashes)) or "none"
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

    def _obtain(self, source: Source, shard: Shard) -> None:
        """Bring the raw file into the folder. The caller holds the shard's lock."""
        raw = source.folder / shard.raw.basename
        if raw.exists():
            self._discard(source, shard.raw, f"has {_size(raw)} bytes instead of {shard.raw.bytes}")
        part = _part_path(source, shard)
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        if self.limit is not None:
            self._make_room(shard, part)
        part.mkdir(parents=True, exist_ok=True)
        try:
            stored = self._fetch(source, shard.stored, part / "stored")
            if shard.zip:
                _unpack(shard, stored, part / "raw", source)
                if source.keep_zip and stored.parent == part:
                    os.replace(stored, source.folder / shard.zip.basename)
                elif not source.keep_zip:
                    stored.unlink()
                stored = part / "raw"
            os.replace(stored, raw)
            self._say_progress(shard)
        except OSError as error:
            raise _no_access(source, error) from error
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
            fault = _fault(path, file, source.validate_hash)
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
            with _locked(self.sources[0].folder / LOCKS / "limit"):
                if self._evict_down_to(self.limit - shard.max_bytes, keep=shard):
                    part.mkdir(parents=True, exist_ok=True)
                    return
            time.sleep(0.05)  # every other shard is being fetched just now
        raise DataError(
            f"cache_limit: no room for {shard.raw.basename} within {ROOM_TIMEOUT_S:.0f} s, as all shards here are"
            f" being fetched; raise cache_limit ({self.limit} bytes)"
        )

    def _evict_down_to(self, target: int, keep: Shard) -> bool:
        used, evictable = 0, []
        for source, shard in zip(self.source_of, self.shards, strict=True):
            paths = [source.folder / file.basename for file in (shard.raw, shard.zip) if file]
            sizes = [_size(path) or 0 for path in paths]
            reserved = shard is not keep and _part_path(source, shard).exists()
            used += shard.max_bytes if reserved else sum(sizes)
            if source.remote and shard is not keep and (reserved or any(sizes)):
                evictable.append((_mtime(paths[0]), source, shard, sum(sizes), reserved))
        for _, source, shard, size, reserved in sorted(evictable, key=lambda item: item[0]):
            if used <= target:
                break
            with _locked(_lock_path(source, shard), wait=False) as free:
                if free:
                    _evict(source, shard)
                    used -= shard.max_bytes if reserved else size
        return used <= target


def fetch_index(source: Source, allow_unsafe_types: bool = False) -> list[Shard]:
    """The shards that the source's index lists, the index fetched first where it is not here or can't be parsed."""
    path = source.folder / INDEX
    if source.remote is None:
        return read_index(source.folder, allow_unsafe_types)
    try:
        (source.folder / LOCKS).mkdir(parents=True, exist_ok=True)
        with _locked(source.folder / LOCKS / INDEX):
            if path.exists():
                try:
                    return read_index(source.folder, allow_unsafe_types)
                except DataError as error:  # the remote's may be good
                    logger.warning(f"{error}; fetching it again from {source.remote}")
                    path.unlink()
            part = path.with_name(INDEX + ".part")
            part.unlink(missing_ok=True)
            download(source, INDEX, part)
            shards = parse_index(part.read_bytes(), f"{source.remote}/{INDEX}", allow_unsafe_types)
            os.replace(part, path)
            return shards
    except OSError as error:
        raise _no_access(source, error) from error


def download(source: Source, basename: str, target: Path, expected: ShardFile | None = None) -> None:
    """Download to `target`, retrying with exponential back-off what may pass. Raises DataError when it does not."""
    remote = f"{str(source.remote).rstrip('/')}/{basename}"
    for attempt in range(1, source.attempts + 1):
        try:
            source.downloader.download(remote, str(target), source.timeout)
            fault = expected and _fault(target, expected, source.validate_hash)
            if not fault:
                return
            error: Exception = DataError(fault)
        except Exception as caught:  # each store's client has exceptions of its own
            error = caught
        target.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise error
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, DataError) else str(error)
        if attempt == source.attempts or _is_final(error):
            raise DataError(
                f"{remote}: stream {source.name!r}: download failed after {attempt} attempt(s): {reason}"
            ) from error
        pause = min(2.0 ** (attempt - 1), 30.0) * random.uniform(1.0, 1.5)
        logger.warning(f"{remote}: attempt {attempt} of {source.attempts} failed, again in {pause:.1f} s: {reason}")
        time.sleep(pause)


def _is_final(error: Exception) -> bool:
    """Whether another attempt would fail in the same way."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return isinstance(error, FileNotFoundError | PermissionError | ImportError) or code in NOT_FOR_US


def _unpack(shard: Shard, stored: Path, target: Path, source: Source) -> None:
    from streaming.base.compression import decompress

    try:
        data = decompress(shard.compression, stored.read_bytes())
    except OSError:
        raise
    except Exception as error:  # each codec has exceptions of its own
        raise DataError(f"{stored}: cannot be decompressed ({shard.compression}): {error}") from error
    target.write_bytes(data)
    fault = _fault(target, shard.raw, None)
    if fault:
        raise DataError(f"{source.folder / shard.raw.basename}: unpacked from {shard.stored.basename}, {fault}")


def _fault(path: Path, file: ShardFile, algorithm: str | None) -> str:
    """What is wrong with the file at `path`, '' if nothing: its size, and its hash where an algorithm is named."""
    size = _size(path)
    if size != file.bytes:
        return f"has {size} bytes instead of {file.bytes}"
    if not algorithm or algorithm not in file.hashes:
        return ""
    from streaming.base.hashing import get_hash

    digest = get_hash(algorithm, path.read_bytes())
    return "" if digest == file.hashes[algorithm] else f"has {algorithm} {digest} instead of {file.hashes[algorithm]}"


def _best_hash(file: ShardFile) -> str | None:
    """The fastest of the hashes that the index has for the file."""
    fast = [name for name in file.hashes if name.startswith("xxh")]
    return min(fast or file.hashes, default=None)


def _evict(source: Source, shard: Shard) -> None:
    for file in (shard.raw, shard.zip):
        if file:
            (source.folder / file.basename).unlink(missing_ok=True)
    shutil.rmtree(_part_path(source, shard), ignore_errors=True)


def _sweep(source: Source, shard: Shard) -> None:
    """Remove what a killed process left of the shard; a live one holds its lock."""
    part = _part_path(source, shard)
    if part.exists():
        with _locked(_lock_path(source, shard), wait=False) as free:
            if free:
                shutil.rmtree(part, ignore_errors=True)


def _part_path(source: Source, shard: Shard) -> Path:
    path = source.folder / shard.raw.basename
    return path.with_name(path.name + ".part")


def _lock_path(source: Source, shard: Shard) -> Path:
    return source.folder / LOCKS / shard.raw.basename.replace("/", "%")


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file; yields whether it is held, which is always true with `wait`."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # not only close: a process forked meanwhile holds a copy of fd
    finally:
        os.close(fd)


def _no_access(source: Source, error: OSError) -> DataError:
    if error.errno in NO_ROOM:
        free = shutil.disk_usage(source.folder).free if source.folder.exists() else 0
        return DataError(
            f"{source.folder}: cannot write stream {source.name!r}: {error.strerror} ({free / 1e9:.1f} GB free);"
            " free some space, set cache_limit, or move local to another disk"
        )
    return DataError(
        f"{error.filename or source.folder}: cannot use as cache of stream {source.name!r}: {error.strerror}"
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
