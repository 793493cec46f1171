"""Where data and caches lie: what identifies a folder is the file system, never how it is spelled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mosaic_photon.errors import ConfigError


def file_path(url: str) -> str | None:
    """The path that a remote names on this machine's file systems; None for a store's URL.

    Raises:
        ConfigError: a file:// URL of another machine.
    """
    parts = urlsplit(url)
    if not parts.scheme:
        return url
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{url}: a file:// URL names a folder of this machine; write file:///{parts.netloc}...")
    return unquote(parts.path)


def same_folder(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to one folder: by device and inode, which links and bind mounts share."""
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there (yet)
        return os.path.realpath(one) == os.path.realpath(other)


def inside(folder: str | Path, other: str | Path) -> bool:
    """Whether `folder`, which need not exist, is `other` or lies in it."""
    resolved = Path(os.path.realpath(folder))
    return any(same_folder(parent, other) for parent in (resolved, *resolved.parents))


@dataclass(frozen=True)
class Place:
    """What a stream's config says of its folders, split included."""

    stream: str
    data: str | None
    """The folder that holds its data, if that is on a file system of this machine."""
    cache: str | None
    """Its cache; None where the data itself is read."""


def place_of(stream: str, local: str | None, remote: str | None, split: str | None) -> Place:
    """Which of a stream's folders is data and which is a cache."""
    local = _with_split(file_path(local) or local, split) if local else None
    path = file_path(remote) if remote else None
    data = _with_split(path, split) if path is not None else None
    if not remote:
        return Place(stream, local, None)
    if local and data and same_folder(local, data):
        return Place(stream, data, None)
    return Place(stream, data, local)


def _with_split(folder: str, split: str | None) -> str:
    return os.path.join(folder, split) if split else folder


def check_apart(places: Sequence[Place], where: str = "") -> None:
    """Raise ConfigError for a cache that is, holds or lies in a folder of some stream's data."""
    owners = {place.data: place.stream for place in places if place.data}
    for place in places:
        for data, owner in owners.items():
            if place.cache and (inside(place.cache, data) or inside(data, place.cache)):
                how = "lies in" if inside(place.cache, data) else "holds"
                raise ConfigError(
                    f"{where}stream {place.stream!r}: its cache {place.cache} {how} the data of stream {owner!r},"
                    f" {data}; give the cache (local) a folder of its own"
                )
