"""Files and folders by one name each: a path of a file system, or the URL of an object store that fsspec knows.

Paths are read by `os`, and fsspec is imported only where a URL is named. All that asks a store goes through `ask`. How
long a silent store is waited for, and how often a request is made again, is each client's own; what of it is set here
is in `_settle`, and holds where the user's settings do not say else.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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
ROUNDS = 2
"""Of such attempts, where a connection breaks, is silent, or S3 is busy: s3fs has five, and no option for it."""
AGAIN_S = 30
"""A call that fails within so many seconds is made once more: clients do not all repeat what breaks off half-way."""
PAUSE_S = 2.0
FINAL = (IsADirectoryError, TypeError, AttributeError, NotImplementedError)
"""What is a fault of ours, and shows its traceback."""

T = TypeVar("T")


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
    """The file system of a URL, one a process for all its threads, and the path on it.

    Each store's own settings of credentials and endpoints hold; Streaming's S3_ENDPOINT_URL too. Listings are not kept:
    other processes write there.

    Raises:
        ConfigError: no such kind of store, or its client is not installed.
    """
    scheme, bucket = scheme_of(url), url.partition("://")[2].partition("/")[0]
    try:
        store = _opened(f"{scheme}://{bucket}", _settle(), os.getpid())
    except (ImportError, ValueError) as error:
        extra = CLIENTS.get(scheme, "")
        raise ConfigError(f"{url}: needs the store's client: pip install 'mosaic-photon[{extra}]' ({error})") from None
    return store, str(store._strip_protocol(url))


@lru_cache(maxsize=64)
def _opened(bucket: str, *_: object) -> AbstractFileSystem:
    from fsspec.core import url_to_fs

    store: AbstractFileSystem = url_to_fs(bucket)[0]
    if "s3" in store.protocol:
        type(store).retries = ROUNDS
    return store


def _settle() -> str:
    """What holds for each store, here and in processes that torch starts; returns it."""
    from fsspec.config import conf

    logging.getLogger("aiobotocore.credentials").setLevel(logging.WARNING)  # a line a process, of where they are from
    for client in dict.fromkeys(CLIENTS.values()):
        schemes = [scheme for scheme, its in CLIENTS.items() if its == client]
        given: dict[str, Any] = {}
        for scheme in schemes:  # fsspec lets the last of them decide, whichever a URL has
            given |= conf.get(scheme, {})
        if client == "s3":
            if "AWS_MAX_ATTEMPTS" not in os.environ:  # which the client would not read beside this
                retries = {"retries": {"total_max_attempts": ATTEMPTS, "mode": "standard"}}
                given["config_kwargs"] = retries | given.get("config_kwargs", {})
            if endpoint := os.environ.get("S3_ENDPOINT_URL"):
                given["endpoint_url"] = endpoint
        for scheme in schemes:
            conf[scheme] = {"use_listings_cache": False} | given
            os.environ[f"FSSPEC_{scheme.upper()}"] = json.dumps(conf[scheme])
    return json.dumps({scheme: conf[scheme] for scheme in CLIENTS})


def ask(url: str, what: str, call: Callable[..., T], *args: Any, again: bool = True, **kwargs: Any) -> T:
    """What a store answers to a call, which is whole or not at all, so that it may be made twice.

    Raises:
        FileNotFoundError: there is nothing at the address.
        ConfigError: no rights, or no answer; the message begins with the address and `what` could not be done.
    """
    begun = time.monotonic()
    while True:
        try:
            return call(*args, **kwargs)
        except (FileNotFoundError, ConfigError, *FINAL):
            raise
        except PermissionError as error:
            raise ConfigError(f"{url}: {what} is not allowed: {_reason(error)}") from error
        except Exception as error:  # around one call of the store's client, each of which has its own exceptions
            if not again or time.monotonic() - begun > AGAIN_S:
                raise ConfigError(f"{url}: {what} failed{after(begun)}: {_reason(error)}") from error
        again = False
        time.sleep(PAUSE_S)


def after(begun: float) -> str:
    """How long was tried, in words."""
    seconds = time.monotonic() - begun
    return f" after {seconds:.0f} s" if seconds >= 1 else ""


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def is_file(path: str) -> bool:
    """Whether there is such a file or object."""
    if not is_url(path):
        return os.path.isfile(path)
    store, inside = open_store(path)
    return ask(path, "looking", store.isfile, inside)


def is_folder(path: str) -> bool:
    """Whether there is such a folder; in a store, anything whose name begins with it."""
    if not is_url(path):
        return os.path.isdir(path)
    store, inside = open_store(path)
    return ask(path, "looking", store.isdir, inside)


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
        found = ask(folder, "listing", store.ls, inside, detail=True)
    except FileNotFoundError:
        return {}
    entries = {entry["name"].rstrip("/"): int(entry["size"] or 0) for entry in found}
    return {posixpath.basename(name): size for name, size in entries.items() if name != inside.rstrip("/")}


def matching(folder: str, patterns: Sequence[str]) -> list[str]:
    """What lies in a folder under one of these patterns of paths."""
    if not is_url(folder):
        return [str(path) for pattern in patterns for path in Path(folder).glob(pattern)]
    store, inside = open_store(folder)
    found = [ask(folder, "listing", store.glob, join(inside, one)) for one in patterns]
    return [str(store.unstrip_protocol(name)) for names in found for name in names]


def read(path: str, start: int = 0, count: int = -1) -> bytes:
    """Bytes [start, start + count) of a file; count -1: to its end. Raises FileNotFoundError."""
    if not is_url(path):
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(count)
    if count == 0:
        return b""
    store, inside = open_store(path)

    def part() -> bytes:
        data: bytes = store.cat_file(inside, start=start or None, end=start + count if count > 0 else None)
        if count > 0 and len(data) != count:
            raise OSError(f"{len(data)} bytes came, {count} were asked for")
        return data

    return ask(path, "reading", part)


def write(path: str, data: bytes) -> None:
    """Write a small file, seen whole or not at all; its folder is made."""
    if not is_url(path):
        write_whole(Path(path), data)
        return
    store, inside = open_store(path)
    ask(path, "writing", store.pipe_file, inside, data)


def remove(path: str) -> None:
    """Remove a file that may not be there."""
    if not is_url(path):
        Path(path).unlink(missing_ok=True)
        return
    store, inside = open_store(path)
    with suppress(FileNotFoundError):
        ask(path, "removing", store.rm_file, inside)


def remove_folder(path: str) -> None:
    """Remove a folder and all in it; it may not be there."""
    if not is_url(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    store, inside = open_store(path)
    with suppress(FileNotFoundError):
        ask(path, "removing", store.rm, inside, recursive=True)


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
        begun = time.monotonic()
        try:
            attempt()
        except ConfigError:
            raise
        except Exception as error:  # whatever each client raises
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{where} = {url!r}: cannot {what} it{after(begun)} ({reason}).") from error


def _listed(store: AbstractFileSystem, folder: str) -> None:
    """A folder that nobody has written to yet is none in a store, but its bucket must be there."""
    try:
        store.ls(folder, detail=False)
    except FileNotFoundError:
        with suppress(PermissionError):  # keys may hold for the folder alone; a bucket that is not there is seen next
            store.ls(folder.partition("/")[0], detail=False)
