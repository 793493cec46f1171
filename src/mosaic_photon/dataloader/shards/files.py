"""Whether a shard's file is whole, by its size and its hash."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mosaic_photon.dataloader.shards.index import ShardFile


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


def names_in(folder: Path) -> list[str]:
    """Of what the folder holds; none if there is no such folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
