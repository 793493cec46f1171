"""What lies at an address of an object store, in the order in which the same files on disk are read."""

from __future__ import annotations

import glob
import json
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from mosaic_photon.errors import ConfigError
from mosaic_photon.prepare.objects import below, look
from mosaic_photon.stores import read

LeftOut = defaultdict[str, list[str]]
"""What is no source although it lies in a folder that is one: reason -> paths. What is under them is not looked at."""
Info = dict[str, Any]
"""What fsspec says of an object."""
VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "mtime")


def list_url(word: str, left_out: LeftOut) -> dict[str, Info]:
    """The objects that an address, of one of them, of a folder or with a pattern, stands for.

    Raises:
        ConfigError: there is nothing, or the store does not say.
    """
    url = word.rstrip("/")
    info = look(url)
    if info is not None and info["type"] == "file":
        return {url: info}
    if info is not None:
        found = below(url)
        return _saved_dataset(url, found) or _folder(url, found, left_out)
    if not glob.has_magic(url):
        raise ConfigError(f"source {word!r} does not exist")
    fixed = url[: min(url.index(sign) for sign in "*?[" if sign in url)].rpartition("/")[0]
    found = below(url, pattern=True)
    if "/." not in url[len(fixed) :]:
        found = _visible(found, fixed, left_out)
    if not found:
        raise ConfigError(f"no file matches the pattern {word!r}")
    return {path: found[path] for path in sorted(found)}


def version_of(info: Info) -> str:
    """What changes when the object does, as far as its store tells."""
    return next((str(info[name]) for name in VERSIONS if info.get(name)), "")


def _folder(url: str, found: dict[str, Info], left_out: LeftOut) -> dict[str, Info]:
    found = _visible(found, url, left_out, {"__pycache__"})
    return {path: found[path] for path in sorted(found, key=lambda path: _walked(path[len(url) :]))}


def _walked(path: str) -> list[tuple[bool, str]]:
    """What sorts paths as a walk does that goes through a folder's files, then through its folders."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def _visible(found: dict[str, Info], root: str, left_out: LeftOut, names: Collection[str] = ()) -> dict[str, Info]:
    """Without hidden ones and folders of these names."""
    kept, passed = {}, defaultdict[str, dict[str, None]](dict)
    for url, info in found.items():
        parts = url[len(root) + 1 :].split("/")
        for number, name in enumerate(parts, 1):
            if name.startswith(".") or (name in names and number < len(parts)):
                reason = "hidden" if name.startswith(".") else f"folders called {name}"
                passed[reason]["/".join([root, *parts[:number]])] = None
                break
        else:
            kept[url] = info
    for reason, paths in passed.items():
        left_out[reason] += paths
    return kept


def _saved_dataset(url: str, known: dict[str, Info]) -> dict[str, Info]:
    """The files of a folder that `datasets.Dataset.save_to_disk` wrote, in order; empty for another folder."""
    if f"{url}/dataset_dict.json" in known:
        raise ConfigError(f"{url} is a dataset with several splits: name one of the folders in it")
    if f"{url}/state.json" not in known:
        return {}
    try:
        files = [f"{url}/{file['filename']}" for file in json.loads(read(f"{url}/state.json"))["_data_files"]]
        return {file: known[file] for file in files}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{url}: its state.json is not that of a whole saved dataset ({error!r})") from error
