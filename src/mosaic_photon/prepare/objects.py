"""Objects of a store, and files, as `prepare` needs them: by ranges, in blocks, moved up.

Nothing is deleted that its caller does not name. `mosaic_photon.stores` opens the store, and asks it.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from mosaic_photon import stores
from mosaic_photon.errors import ConfigError
from mosaic_photon.files import OWN
from mosaic_photon.stores import ask, is_url, open_store

UPLOAD = {"s3": {"chunksize": 16 << 20, "max_concurrency": 4}}
"""How a file goes up in parts, where the client would hold half a gigabyte of it."""
BLOCK = 4 << 20
"""Bytes that are asked for at once; of each open file two are held."""
THREADS = 8


def look(url: str) -> dict[str, Any] | None:
    """What fsspec says of an object, or of a folder, type "directory"; None: there is nothing.

    Raises:
        ConfigError: there is no such bucket, no right to look, or no answer.
    """
    store, _ = open_store(url)
    try:
        return ask(url, "looking", store.info, url, again=False)
    except FileNotFoundError:
        bucket = root(url)
        if bucket != url.rstrip("/") and not ask(bucket, "looking", store.exists, bucket, again=False):
            raise ConfigError(f"{url}: there is no {bucket}") from None
        return None


def root(url: str) -> str:
    """The bucket or container; of Hugging Face the repository."""
    scheme, _, path = url.partition("://")
    parts = path.split("/")
    return f"{scheme}://{'/'.join(parts[: (3 if parts[0] in ('datasets', 'spaces') else 2) if scheme == 'hf' else 1])}"


def below(url: str, pattern: bool = False) -> dict[str, dict[str, Any]]:
    """Address -> what fsspec says of it, of all objects below a folder or, with `pattern`, that fit the address."""
    (store, _), scheme = open_store(url), url.partition("://")[0]
    try:
        found = ask(url, "listing", store.glob if pattern else store.find, url, detail=True, again=False)
    except FileNotFoundError:
        return {}
    return {f"{scheme}://{path}": info for path, info in found.items() if info["type"] == "file"}


def bring(file: Path, place: str) -> None:
    """Move a finished local file to a place on the same file system, or up to a store, in parts if it is large."""
    if is_url(place):
        how = UPLOAD.get(stores.CLIENTS.get(stores.scheme_of(place), ""), {})
        ask(place, "writing", partial(open_store(place)[0].put_file, str(file), place, **how))
        file.unlink()
    else:
        os.replace(file, place)


def remove(urls: Sequence[str]) -> None:
    """Remove these objects; one that is not there is passed over."""
    for _ in _threads(os.getpid()).map(stores.remove, urls):
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
            self._blocks[number] = _threads(os.getpid()).submit(stores.read, self.url, begin, count)
        return self._blocks[number]
