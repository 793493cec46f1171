"""From a stream's remote to a file on this node: retried, checked, unpacked."""

from __future__ import annotations

import errno
import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mosaic_photon.dataloader.node.folder import folder_of
from mosaic_photon.dataloader.shards.files import fault_of
from mosaic_photon.dataloader.shards.index import DataError, Shard, ShardFile
from mosaic_photon.dataloader.shards.patience import Outage
from mosaic_photon.dataloader.shards.store import Silence, get, is_final, is_outage

T = TypeVar("T")
logger = logging.getLogger(__name__)

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Source:
    """One stream: the folder of its files on this node, and the remote they come from; without one it is the data."""

    name: str
    folder: Path
    remote: str | None = None
    attempts: int = 3
    timeout: float = 60.0
    """Seconds without data before a download fails."""
    patience: float = 0.0
    """Seconds for which whoever needs a file waits for a remote that does not answer."""
    validate_hash: str | None = None
    keep_zip: bool = False
    downloader: Any = None
    """Streaming's CloudDownloader for the remote."""
    data: Path | None = None
    """The user's own folder that is the remote, where `folder` only takes what is unpacked of it. Never written to."""

    @property
    def cache(self) -> Path | None:
        """The folder in which files may be added; None where the data itself is read."""
        return self.folder if self.remote else None


def download(source: Source, basename: str, target: Path, expected: ShardFile | None = None) -> None:
    """Download to `target`, retrying with exponential back-off what may pass.

    Raises:
        Outage: the remote does not answer; `patiently` is for whoever can wait.
        DataError: what came is wrong, `download_retry` times over, or the file is missing or forbidden.
    """
    remote = f"{str(source.remote).rstrip('/')}/{basename}"
    for attempt in range(1, source.attempts + 1):
        try:
            get(source.downloader, remote, target, source.timeout)
            fault = expected and fault_of(target, expected, source.validate_hash)
            if not fault:
                return
            error: Exception = DataError(fault)
        except Exception as caught:  # each store's client has exceptions of its own
            error = caught
        target.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise error
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, DataError) else str(error)
        if is_outage(error):
            heard = error.last if isinstance(error, Silence) else None
            raise Outage(f"{remote}: stream {source.name!r}: no answer: {reason}", heard) from error
        if attempt == source.attempts or is_final(error):
            raise DataError(
                f"{remote}: stream {source.name!r}: download failed after {attempt} attempt(s): {reason}"
            ) from error
        pause = min(2.0 ** (attempt - 1), 30.0) * random.uniform(1.0, 1.5)
        logger.warning(f"{remote}: attempt {attempt} of {source.attempts} failed, again in {pause:.1f} s: {reason}")
        time.sleep(pause)


def unpack(shard: Shard, stored: Path, target: Path, source: Source) -> None:
    """Decompress the stored file into `target`: never more than the bytes that the index promises."""
    import cramjam

    codec = (shard.compression or "").split(":")[0]
    decompress_into = {
        "br": cramjam.brotli.decompress_into,
        "bz2": cramjam.bzip2.decompress_into,
        "gz": cramjam.gzip.decompress_into,
        "snappy": cramjam.snappy.decompress_raw_into,
        "zstd": cramjam.zstd.decompress_into,
    }[codec]
    data = np.empty(shard.raw.bytes, np.uint8).data
    try:
        size = decompress_into(stored.read_bytes(), data)
    except cramjam.DecompressionError as error:
        raise DataError(
            f"{stored}: cannot be decompressed ({shard.compression}) into {shard.raw.bytes} bytes: {error}"
        ) from error
    if size != shard.raw.bytes:
        name = source.folder / shard.raw.basename
        raise DataError(f"{name}: unpacked from {shard.stored.basename}, has {size} bytes instead of {shard.raw.bytes}")
    target.write_bytes(data)


@contextmanager
def accessing(source: Source) -> Iterator[None]:
    """Within it, what the operating system refuses of the source's folder is a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(_refusal(source, error)) from error


def reported(source: Source, work: Callable[[], T]) -> dict[str, Any]:
    """What `work` answers, or its DataError or OSError, as `once_a_run` can hand it to other processes."""
    try:
        with accessing(source):
            return {"error": "", "found": work()}
    except DataError as error:
        return {"error": str(error)}


def _refusal(source: Source, error: OSError) -> str:
    elsewhere = "set mosaic.node_folder to a folder on" if _is_placed_by_us(source) else "move local to"
    if error.errno in NO_ROOM:
        free = shutil.disk_usage(source.folder).free if source.folder.exists() else 0
        return (
            f"{source.folder}: cannot write stream {source.name!r}: {error.strerror} ({free / 1e9:.1f} GB free);"
            f" free some space, set cache_limit, or {elsewhere} another disk"
        )
    if error.errno == errno.ENODEV:
        return (
            f"{source.folder}: cannot use as cache of stream {source.name!r}: its file system maps no file into memory"
            f" that several processes write to; {elsewhere} a disk of the node's own"
        )
    return f"{error.filename or source.folder}: cannot use as cache of stream {source.name!r}: {error.strerror}"


def _is_placed_by_us(source: Source) -> bool:
    """Whether its folder lies in the node folder, as no `local` names it."""
    return source.data is not None or source.folder.absolute().is_relative_to(folder_of(""))
