"""Files and folders by one name each: a path of a file system, or the URL of an object store that fsspec knows.

Paths are read by `os`, and fsspec is imported only where a URL is named.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import OWN, write_whole

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CLIENTS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
"""The extra of this package that brings a store's client, by the scheme of its URLs."""
SCHEMES = (*CLIENTS, "hf")
"""Of URLs that are known."""


ATTEMPTS = 10
"""At a request of S3's, unless AWS_MAX_ATTEMPTS says else; with its pauses they take about a minute."""


def is_url(path: str) -> bool:
    """Whether this is an address and no path of a file system; torch and TorchTitan judge alike.

    Raises:
        ConfigError: an address that has lost a slash, of which a folder would be made.
    """
    scheme, colon, rest = path.partition(":")
    if colon and scheme in SCHEMES and not rest.startswith("//"):
        raise ConfigError(f"{path}: a store's address has two slashes: {scheme}://{rest.lstrip('/')}")
    return "://" in path


def scheme_of(url: str) -> str:
    """Which kind of store it is. Raises ConfigError for one that is not known."""
    scheme = url.partition("://")[0]
    if scheme in ("file", "local"):
        raise ConfigError(f"{url}: a folder of this machine is named by its path, without {scheme}://")
    if scheme not in SCHEMES:
        raise ConfigError(f"{url}: stores that are known are {', '.join(f'{name}://' for name in SCHEMES)}")
    return scheme


def join(folder: str, *names: str) -> str:
    """A path or URL beneath `folder`; what is a URL itself, or an absolute path, begins anew."""
    for name in names:
        if is_url(name):
            folder = name
        else:
            folder = posixpath.join(folder, name) if is_url(folder) else os.path.join(folder, name)
    return folder


def open_store(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path on it.

    Each store's own settings of credentials and endpoints hold; Streaming's S3_ENDPOINT_URL too. Listings are not kept:
    other processes write there.

    Raises:
        ConfigError: no such kind of store, or its client is not installed.
    """
    from fsspec.core import url_to_fs

    extra = CLIENTS.get(scheme_of(url), "")
    _settle()
    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url}: needs the store's client: pip install 'mosaic-photon[{extra}]' ({error})") from None


def _settle() -> None:
    """What holds for each store, here and in processes that torch starts, where the user's settings do not say else."""
    from fsspec.config import conf

    logging.getLogger("aiobotocore.credentials").setLevel(logging.WARNING)  # a line a process, of where they are from
    for scheme, client in CLIENTS.items():
        chosen: dict[str, Any] = {"use_listings_cache": False}
        if client == "s3":
            if "AWS_MAX_ATTEMPTS" not in os.environ:  # which the client would not read beside this
                chosen["config_kwargs"] = {"retries": {"total_max_attempts": ATTEMPTS, "mode": "standard"}}
            if endpoint := os.environ.get("S3_ENDPOINT_URL"):
                conf.get(scheme, {}).pop("endpoint_url", None)
                chosen["endpoint_url"] = endpoint
        conf[scheme] = chosen | conf.get(scheme, {})
        os.environ[f"FSSPEC_{scheme.upper()}"] = json.dumps(conf[scheme])


@contextmanager
def understood(url: str) -> Iterator[None]:
    """What a store refuses, in words, other than a file that is not there. Raises ConfigError for it."""
    if not is_url(url):
        yield
        return
    try:
        yield
    except (ConfigError, FileNotFoundError):
        raise
    except Exception as error:  # around one call of the store's client, each of which has its own exceptions
        raise ConfigError(f"{url}: the store answers with {type(error).__name__}: {error}") from error


def is_file(path: str) -> bool:
    """Whether there is such a file or object."""
    if not is_url(path):
        return os.path.isfile(path)
    store, inside = open_store(path)
    with understood(path):
        return store.isfile(inside)


def is_folder(path: str) -> bool:
    """Whether there is such a folder; in a store, anything whose name begins with it."""
    if not is_url(path):
        return os.path.isdir(path)
    store, inside = open_store(path)
    with understood(path):
        return store.isdir(inside)


def names(folder: str) -> list[str]:
    """What lies right in a folder; empty where there is none."""
    if not is_url(folder):
        return os.listdir(folder) if os.path.isdir(folder) else []
    return list(sizes(folder))


def sizes(folder: str) -> dict[str, int]:
    """The names right in a folder, each with its bytes; empty where there is none."""
    if not is_url(folder):
        if not os.path.isdir(folder):
            return {}
        return {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    store, inside = open_store(folder)
    try:
        with understood(folder):
            found = store.ls(inside, detail=True)
    except FileNotFoundError:
        return {}
    entries = {entry["name"].rstrip("/"): int(entry["size"] or 0) for entry in found}
    return {posixpath.basename(name): size for name, size in entries.items() if name != inside.rstrip("/")}


def matching(folder: str, patterns: Sequence[str]) -> list[str]:
    """What lies in a folder under one of these patterns of paths."""
    if not is_url(folder):
        return [str(path) for pattern in patterns for path in Path(folder).glob(pattern)]
    store, inside = open_store(folder)
    with understood(folder):
        return [str(store.unstrip_protocol(found)) for one in patterns for found in store.glob(join(inside, one))]


def read(path: str) -> bytes:
    """The whole of a small file. Raises FileNotFoundError."""
    if not is_url(path):
        return Path(path).read_bytes()
    store, inside = open_store(path)
    with understood(path):
        return store.cat_file(inside)


def write(path: str, data: bytes) -> None:
    """Write a small file, seen whole or not at all; its folder is made."""
    if not is_url(path):
        write_whole(Path(path), data)
        return
    store, inside = open_store(path)
    with understood(path):
        store.pipe_file(inside, data)


def remove(path: str) -> None:
    """Remove a file that may not be there."""
    if not is_url(path):
        Path(path).unlink(missing_ok=True)
        return
    store, inside = open_store(path)
    with suppress(FileNotFoundError), understood(path):
        store.rm_file(inside)


def remove_folder(path: str) -> None:
    """Remove a folder and all in it; it may not be there."""
    if not is_url(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    store, inside = open_store(path)
    with suppress(FileNotFoundError), understood(path):
        store.rm(inside, recursive=True)


def check_rights(where: str, url: str) -> None:
    """Try what will be done in a store: list the folder, and write, read and remove a file of ours in it.

    Args:
        where: the setting, in the message.

    Raises:
        ConfigError: with what cannot be done.
    """
    store, inside = open_store(url)
    probe = posixpath.join(inside, f"{OWN}probe.{os.getpid()}")
    tries: list[tuple[str, Callable[[], object]]] = [
        ("list", lambda: _listed(store, inside)),
        ("write to", lambda: store.pipe_file(probe, b"mosaic-photon")),
        ("read from", lambda: store.cat_file(probe)),
        ("remove from", lambda: store.rm_file(probe)),
    ]
    for what, attempt in tries:
        try:
            attempt()
        except ConfigError:
            raise
        except Exception as error:  # whatever each client raises
            raise ConfigError(f"{where} = {url!r}: cannot {what} it ({type(error).__name__}: {error}).") from error


def _listed(store: AbstractFileSystem, folder: str) -> None:
    """A folder that nobody has written to yet is none in a store, but its bucket must be there."""
    try:
        store.ls(folder, detail=False)
    except FileNotFoundError:
        with suppress(PermissionError):  # keys may hold for the folder alone; a bucket that is not there is seen next
            store.ls(folder.partition("/")[0], detail=False)
