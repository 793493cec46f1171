"""Files that one process of a node makes and all of them map: made under a lock, kept while anybody uses them.

What is in one is fixed by its name, so it can be found again by a later job. A process that maps a file holds a shared
lock on it as long as the mapping lives; files that nobody holds and nobody opened for a day are removed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mosaic_photon.files import locked

KEEP_S = 24 * 3600.0
_LOCKS, _PART = "locks", ".part"
_MADE = re.compile(r"[0-9a-f]{32,64}(\.\d+)?(\.\d+\.part)?")
"""Names of files that are made here, of their locks and parts. Others are of somebody who has named the node folder."""


def map_made(path: Path, make: Callable[[Path], None]) -> mmap.mmap:
    """The file at `path`, mapped to be read; where there is none, `make` is called with the name to write first.

    The other processes of the node wait for the one that makes it. Raises OSError, and what `make` raises.
    """
    mapped = _map(path)
    if mapped is not None:
        return mapped
    remove_unused(path.parent)
    with locked(path.parent / _LOCKS / path.name):
        mapped = _map(path)
        if mapped is None:
            part = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
            make(part)
            _write_out(part)
            os.replace(part, path)
            mapped = _map(path)
    if mapped is None:
        raise FileNotFoundError(2, "removed right after it was made", str(path))
    return mapped


def remove_unused(folder: Path) -> None:
    """Remove files of ours here that nobody holds and nobody opened for a day, and parts that a killed process left."""
    paths = [path for of in (folder, folder / _LOCKS) if of.is_dir() for path in of.iterdir() if path.is_file()]
    for path in paths:
        if not _MADE.fullmatch(path.name):
            continue
        with suppress(FileNotFoundError):  # another process of the node removes them, too
            if path.suffix == _PART:
                _remove_if_free(path, folder / _LOCKS / path.with_suffix("").stem)
            elif time.time() - path.stat().st_mtime > KEEP_S:
                _remove_if_free(path, path)


def remove_unheld(path: Path) -> None:
    """Remove a file that was made, unless somebody has mapped it or it is not there."""
    if path.exists():
        with suppress(FileNotFoundError):
            _remove_if_free(path, path)


def _remove_if_free(path: Path, lock: Path) -> None:
    with locked(lock, wait=False) as free:
        if free:
            os.unlink(path)


def _map(path: Path) -> mmap.mmap | None:
    """None if there is no such file. The mapping keeps a descriptor of its own, and with it the lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        with suppress(PermissionError):  # another user's
            os.utime(fd)
        return mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    finally:
        os.close(fd)


def _write_out(path: Path) -> None:
    """To the disk, so that after a power cut no file has its name but not its content."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
