"""Files that several processes of a node share: their locks, and whether one is whole."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mosaic_photon.dataloader.shards.index import OWN, ShardFile


@contextmanager
def locked(path: Path, wait: bool = True, remove: bool = False) -> Iterator[bool]:
    """Hold the lock file; yields whether it is held, always with `wait`. With `remove` the file goes in the end."""
    fd = _open_lock(path)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if _is_at(path, fd):
                break
            os.close(fd)  # another holder has removed it since it was opened
            fd = _open_lock(path)
        try:
            yield True
        finally:
            if remove:
                path.unlink(missing_ok=True)
            fcntl.flock(fd, fcntl.LOCK_UN)  # not only close: a process forked meanwhile holds a copy of fd
    finally:
        os.close(fd)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that others see whole or not at all. The folder is there, or is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{OWN}{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def fault_of(path: Path, file: ShardFile, algorithm: str | None) -> str:
    """What is wrong with the file at `path`, '' if nothing: its size, and its hash where an algorithm is named."""
    size = size_of(path)
    if size != file.bytes:
        return f"has {size} bytes instead of {file.bytes}"
    if not algorithm or algorithm not in file.hashes:
        return ""
    from streaming.base.hashing import get_hash

    digest = get_hash(algorithm, path.read_bytes())
    return "" if digest == file.hashes[algorithm] else f"has {algorithm} {digest} instead of {file.hashes[algorithm]}"


def best_hash(file: ShardFile) -> str | None:
    """The fastest of the hashes that the index has for the file and that can be computed here."""
    known = known_hashes(file.hashes)
    fast = [name for name in known if name.startswith("xxh")]
    return min(fast or known, default=None)


def known_hashes(names: Iterable[str]) -> list[str]:
    """Those that Streaming can compute."""
    from streaming.base.hashing import is_hash

    return [name for name in names if is_hash(name)]


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def mtime_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
