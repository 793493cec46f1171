"""The node folder: what this node can make or fetch again lies here, never beside a user's data."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from mosaic_photon.dataloader.node.settings import settings
from mosaic_photon.errors import ConfigError
from mosaic_photon.places import file_path


def node_folder(configured: str | None = None) -> Path:
    """The folder for caches without `local`, unpacked shards, orders and indexes, made (mode 0700) where it is absent.

    Args:
        configured: `[mosaic] node_folder`; None or "" is `mosaic-photon-UID` in the temporary directory.

    Raises:
        ConfigError: it is no folder that this user can write to; or the default one, whose name anybody can guess, is
            a link or another user's.
    """
    folder = Path(configured) if configured else Path(tempfile.gettempdir(), f"mosaic-photon-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=bool(configured), exist_ok=True)
        found = folder.stat() if configured else folder.lstat()
    except OSError as error:
        raise ConfigError(
            f"mosaic.node_folder = {str(folder)!r}: {error.strerror}; name a folder that is yours."
        ) from None
    if not configured:
        if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid():
            what = "is a link" if stat.S_ISLNK(found.st_mode) else "belongs to another user"
            raise ConfigError(f"{folder} {what}; set mosaic.node_folder to a folder on this node's disk that is yours.")
        if found.st_mode & 0o077:
            folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"mosaic.node_folder = {str(folder)!r}: it can't be written to; name a folder that is yours.")
    return folder.absolute()


def folder_of(kind: str) -> Path:
    """The folder for things of a kind, in the node folder in force. It is not made here."""
    return node_folder(settings().node_folder) / kind


def name_of(text: str) -> str:
    """A name for what is made of this, the same in every run."""
    return hashlib.blake2s(text.encode(), digest_size=8).hexdigest()


def folder_for(place: str, kind: str) -> Path:
    """The folder for what is made of the data at `place`, a path or an address, however it is spelled."""
    path = file_path(place)
    return folder_of(kind) / name_of(place if path is None else os.path.realpath(path))


def settle_folders(dataset: dict[str, Any]) -> None:
    """Write file:// URLs of a dataset's config as paths, and give streams without `local` a folder on the node.

    Raises:
        ConfigError: the node folder can't be used, or a URL names another machine.
    """
    for stream in [dataset, *(dataset.get("streams") or {}).values()]:
        for key in ("remote", "local"):
            if str(stream.get(key) or "").startswith("file:"):
                stream[key] = file_path(stream[key])
        if stream.get("remote") and not stream.get("local"):
            stream["local"] = str(folder_for(stream["remote"], "caches"))
