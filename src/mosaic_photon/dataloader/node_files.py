"""Files that one process of a node makes and all of them map: made under a lock, kept while anybody uses them.

What is in one is fixed by its name, so it can be found again by a later job. A process that maps a file holds a shared
lock on it as long as the mapping lives; files that nobody holds and nobody opened for a day are removed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mosaic_photon.dataloader.files import locked

KEEP_S = 24 * 3600.0
_LOCK = "lock"
_PART = ".part"


def map_made(path: Path, make: Callable[[Path], None]) -> mmap.mmap:
    """The file at `path`, mapped to be read; where there is none, `make` is called with the name to write first.

    The other processes of the node wait for the one that makes it. Raises OSError, and what `make` raises.
    """
    mapped = _map(path)
    if mapped is not None:
        return mapped
    with locked(path.parent / _LOCK):
        mapped = _map(path)
        if mapped is None:
            _remove_unused(path.parent)
            part = path.with_name(path.name + _PART)
            make(part)
            _write_out(part)
            os.replace(part, path)
            mapped = _map(path)
    if mapped is None:
        raise FileNotFoundError(2, "removed right after it was made", str(path))
    return mapped


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


def _remove_unused(folder: Path) -> None:
    """Files here that nobody holds and nobody opened for a day, and parts that a killed process left."""
    for entry in os.scandir(folder):
        old = time.time() - entry.stat().st_mtime > KEEP_S
        if entry.name == _LOCK or not (old or entry.name.endswith(_PART)):
            continue
        with locked(Path(entry.path), wait=False) as free:
            if free:
                os.unlink(entry.path)
