"""The folders on this node that a stream's config does not name: caches without `local`, and what is made of data."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from mosaic_photon.dataloader.shards.node_folder import node_folder
from mosaic_photon.dataloader.shards.settings import settings
from mosaic_photon.places import file_path


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


def folder_for(name: str, kind: str) -> Path:
    """A folder of the node's for what is made of `name`, the same in every run. It is not made here."""
    path = file_path(name)
    known_as = name if path is None else os.path.realpath(path)
    return node_folder(settings().node_folder) / kind / hashlib.blake2s(known_as.encode(), digest_size=8).hexdigest()
