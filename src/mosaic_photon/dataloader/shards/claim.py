"""What a cache folder says of itself, `.mosaic_photon.json`: whose data it holds, and what is not ours in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from urllib.parse import quote

from mosaic_photon.dataloader.shards.files import names_in
from mosaic_photon.dataloader.shards.index import LOCKS, Shard
from mosaic_photon.files import OWN, write_whole
from mosaic_photon.places import file_path

CLAIM = f"{OWN}json"
PARTS = f"{OWN}parts"
NOTHING = {LOCKS, "lost+found"}
VERSION = 1


@dataclass(frozen=True)
class Claim:
    """The content of `.mosaic_photon.json`."""

    remote: str
    index: str
    """Digest of the remote's index.json."""
    stamp: str
    """What the store said of that index.json, see `stamp_of`."""
    kept: frozenset[str] = frozenset()
    """Files that were in the folder before it became a cache of ours, by their basename in the index."""

    def may_remove(self, basename: str) -> bool:
        """Whether the shard's file was fetched by us."""
        return basename not in self.kept

    def write(self, folder: Path) -> None:
        """Write it into the folder, which is made where it is absent."""
        record = {"version": VERSION, **asdict(self), "kept": sorted(self.kept)}
        write_whole(folder / CLAIM, json.dumps(record, indent=1).encode())


def read_claim(folder: Path) -> Claim | None:
    """The folder's claim; None if it has none or one that can't be read."""
    try:
        record = json.loads((folder / CLAIM).read_bytes())
        if record["version"] != VERSION:
            return None
        return Claim(record["remote"], record["index"], record["stamp"], frozenset(record["kept"]))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def canonical(remote: str) -> str:
    """A remote's name as claims hold it: for a folder of this machine the path without links."""
    path = file_path(remote)
    return remote.rstrip("/") if path is None else os.path.realpath(path)


def digest_of(index: Path) -> str:
    """Of an index.json."""
    with index.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2s(digest_size=16)).hexdigest()


def contents(folder: Path) -> list[str]:
    """Names of what the folder holds, without what is ours or nobody's; [] if there is no such folder yet."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:  # where a file is in its way it cannot be made: that is raised
        return []
    return sorted(name for name in names if name not in NOTHING and not name.startswith(OWN))


def names_here(folder: Path, shards: Iterable[Shard]) -> set[str]:
    """Basenames, as an index has them, of all that lies in the folders that hold the shards' files.

    Costs what is there, not what the index lists.
    """
    parents = {os.path.dirname(file.basename) for shard in shards for file in shard.files}
    return {f"{parent}/{name}".lstrip("/") for parent in parents for name in names_in(folder / parent)}


def lock_path(folder: Path, basename: str) -> Path:
    """The lock file of one of the folder's files."""
    return folder / LOCKS / quote(basename, safe="")


def in_use(folder: Path) -> FileIO | None:
    """Keeps the folder's index as it is while the file is open; None in a folder that can't be written to."""
    try:
        path = use_path(folder)
        path.parent.mkdir(exist_ok=True)
        held = FileIO(path, "a")
    except OSError:
        return None
    fcntl.flock(held, fcntl.LOCK_SH)
    return held


def use_path(folder: Path) -> Path:
    """The file that every process which reads the cache holds a shared lock of."""
    return lock_path(folder, f"{OWN}use")


def part_path(folder: Path, basename: str) -> Path:
    """The folder in which a file is made while it is fetched."""
    return folder / PARTS / quote(basename, safe="")
