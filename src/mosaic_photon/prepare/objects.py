"""Objects of a store, and files, as `prepare` needs them: by ranges, in blocks, moved up, each call again if it fails.

A call is whole or not at all, so it may be made again, and is, once: the clients make their requests again themselves,
and what is left is an answer that breaks off. Nothing is deleted that its caller does not name.
`mosaic_photon.stores` opens the store.
"""

from __future__ import annotations

import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from mosaic_photon import stores
from mosaic_photon.errors import ConfigError
from mosaic_photon.files import OWN, write_whole
from mosaic_photon.stores import is_url

T = TypeVar("T")
UPLOAD = {"s3": {"chunksize": 16 << 20, "max_concurrency": 4}}
"""How a file goes up in parts, where the client would hold half a gigabyte of it."""
WAITS_S: tuple[float, ...] = (2,)
"""Between the tries of one request, each of which is a client's own tries: more would multiply those."""
FIRST: tuple[float, ...] = ()
"""Who has not got an answer yet is told so after the client's own."""
BLOCK = 4 << 20
"""Bytes that are asked for at once; of each open file two are held."""
THREADS = 8
FINAL = (IsADirectoryError, TypeError, AttributeError, NotImplementedError)
NO_CREDENTIALS = {"BotoCoreError", "GoogleAuthError", "ClientAuthenticationError", "HttpResponseError"}
TRANSIENT = {"HTTPClientError", "ConnectionError", "ServiceRequestError", "ServiceResponseError", "TransportError"}
"""Classes of the clients' errors by name, as the clients need not be installed."""


def file_system(url: str) -> Any:
    """The fsspec file system of an address, one a process, for all its threads.

    Raises:
        ConfigError: a store that is not known, or whose client is not installed.
    """
    return _opened(f"{stores.scheme_of(url)}://", os.environ.get("S3_ENDPOINT_URL"), os.getpid())


@lru_cache(maxsize=len(stores.SCHEMES))
def _opened(root: str, *_: object) -> Any:
    return stores.open_store(root)[0]


def ask(
    url: str, what: str, call: Callable[..., T], *args: Any, waits: tuple[float, ...] = WAITS_S, **kwargs: Any
) -> T:
    """What a store answers, asked again while it fails for reasons that pass.

    Raises:
        FileNotFoundError: there is nothing at the address.
        ConfigError: no rights, or no answer; the message begins with the address and `what` could not be done.
    """
    for tried in itertools.count(1):
        try:
            return call(*args, **kwargs)
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise ConfigError(f"{url}: {what} is not allowed: {_reason(error)}") from error
        except Exception as error:
            if isinstance(error, (*FINAL, ConfigError)):
                raise
            if _is_final(error):
                raise ConfigError(f"{url}: {what} failed: {_reason(error)}") from error
            if tried > len(waits):
                raise ConfigError(f"{url}: {what} failed {tried} times, last: {_reason(error)}") from error
        time.sleep(waits[tried - 1])
    raise AssertionError


def _is_final(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & NO_CREDENTIALS) and not names & TRANSIENT


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def look(url: str) -> dict[str, Any] | None:
    """What fsspec says of an object, or of a folder, type "directory"; None: there is nothing.

    Raises:
        ConfigError: there is no such bucket, no right to look, or no answer.
    """
    store = file_system(url)
    try:
        return ask(url, "looking", store.info, url, waits=FIRST)
    except FileNotFoundError:
        bucket = root(url)
        if bucket != url.rstrip("/") and not ask(bucket, "looking", store.exists, bucket, waits=FIRST):
            raise ConfigError(f"{url}: there is no {bucket}") from None
        return None


def root(url: str) -> str:
    """The bucket or container; of Hugging Face the repository."""
    scheme, _, path = url.partition("://")
    parts = path.split("/")
    return f"{scheme}://{'/'.join(parts[: (3 if parts[0] in ('datasets', 'spaces') else 2) if scheme == 'hf' else 1])}"


def below(url: str, pattern: bool = False) -> dict[str, dict[str, Any]]:
    """Address -> what fsspec says of it, of all objects below a folder or, with `pattern`, that fit the address."""
    store, scheme = file_system(url), url.partition("://")[0]
    try:
        found = ask(url, "listing", store.glob if pattern else store.find, url, detail=True, waits=FIRST)
    except FileNotFoundError:
        return {}
    return {f"{scheme}://{path}": info for path, info in found.items() if info["type"] == "file"}


def read(place: str, start: int = 0, count: int = -1) -> bytes:
    """Bytes [start, start + count) of an object or a file; count -1: to its end.

    Raises:
        FileNotFoundError: there is none.
    """
    if not is_url(place):
        with open(place, "rb") as file:
            file.seek(start)
            return file.read(count)
    if count == 0:
        return b""

    def part() -> bytes:
        end = start + count if count > 0 else None
        data: bytes = file_system(place).cat_file(place, start=start or None, end=end)
        if count > 0 and len(data) != count:
            raise OSError(f"{len(data)} bytes came, {count} were asked for")
        return data

    return ask(place, "reading", part)


def write(place: str, data: bytes) -> None:
    """Write an object or a file that others see whole or not at all."""
    if is_url(place):
        ask(place, "writing", file_system(place).pipe_file, place, data)
    else:
        write_whole(Path(place), data)


def bring(file: Path, place: str) -> None:
    """Move a finished local file to a place on the same file system, or up to a store, in parts if it is large."""
    if is_url(place):
        how = UPLOAD.get(stores.CLIENTS.get(stores.scheme_of(place), ""), {})
        ask(place, "writing", partial(file_system(place).put_file, str(file), place, **how))
        file.unlink()
    else:
        os.replace(file, place)


def remove(urls: Sequence[str]) -> None:
    """Remove these objects; one that is not there is passed over."""

    def one(url: str) -> None:
        with suppress(FileNotFoundError):
            ask(url, "deleting", file_system(url).rm_file, url)

    for _ in _threads(os.getpid()).map(one, urls):
        pass


def make_folder(place: str) -> None:
    """Make a folder of this machine; a store has none."""
    if not is_url(place):
        os.makedirs(place, exist_ok=True)


@contextmanager
def scratch(folder: str) -> Iterator[Path]:
    """A folder of this machine, for files that `bring` then moves to `folder`; it is gone in the end."""
    with tempfile.TemporaryDirectory(prefix=OWN, dir=None if is_url(folder) else folder) as made:
        yield Path(made)


@lru_cache(maxsize=1)
def _threads(_: int) -> ThreadPoolExecutor:
    """Of this process, not of the one that it was forked from."""
    return ThreadPoolExecutor(THREADS, "store")


def stream(url: str, size: int, start: int = 0, stop: int = -1) -> io.BufferedReader:
    """An object as a file to read, of which a few blocks are in memory. Args: as Stream's."""
    return io.BufferedReader(Stream(url, size, start, stop), 1 << 20)


class Stream(io.RawIOBase):
    """An object as a file to read: a block is held, and the next comes meanwhile."""

    def __init__(self, url: str, size: int, start: int = 0, stop: int = -1) -> None:
        """`start` and `stop`: between which reading is foreseen; the first block is asked for at once."""
        super().__init__()
        self.url, self.size, self._position = url, size, 0
        self._foreseen = size if stop == -1 else stop
        self._blocks: dict[int, Future[bytes]] = {}
        if size:
            self._ask_for(start // BLOCK)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self.size:
            return 0
        number, begin = divmod(self._position, BLOCK)
        part = memoryview(self._block(number))[begin : begin + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        self._blocks = {near: block for near, block in self._blocks.items() if near in (number, number + 1)}
        block = self._ask_for(number)
        if (number + 1) * BLOCK < self._foreseen:
            self._ask_for(number + 1)
        return block.result()

    def _ask_for(self, number: int) -> Future[bytes]:
        if number not in self._blocks:
            begin = number * BLOCK
            count = min(BLOCK, self.size - begin)
            self._blocks[number] = _threads(os.getpid()).submit(read, self.url, begin, count)
        return self._blocks[number]
