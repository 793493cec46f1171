"""Asking a stream's store, which may be silent, trickle or be gone: every request ends in bounded time.

Each store's client has its own exceptions and its own idea of a time-out (several have none). So a request runs in a
thread that is left behind once nothing has come for a while, and what went wrong is judged by the operating system's
error or the HTTP status at the bottom of the client's exception.
"""

from __future__ import annotations

import _thread
import errno
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mosaic_photon.dataloader.shards.index import INDEX
from mosaic_photon.places import file_path

if TYPE_CHECKING:
    from mosaic_photon.dataloader.shards.fetch import Source

T = TypeVar("T")
SLOWEST = 1024
"""Bytes a second; a download that stays below is as good as silent."""
POLL_S = 0.25
NO_ANSWER = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLEOFError)
UNREACHABLE = {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ESTALE}
BUSY = {408, 429}
FORBIDDEN_OR_MISSING = {401, 403, 404, 410}
FINAL_CODES = {"AccessDenied", "NoSuchKey", "NoSuchBucket"}


class Silence(TimeoutError):
    """Nothing, or next to nothing, came for the time that was given."""

    def __init__(self, seconds: float, last: float | None) -> None:
        super().__init__(f"nothing has come for {seconds:.3g} s")
        self.last = last
        """When something last came, by the monotonic clock; None: never."""


def within(timeout: float, request: Callable[[], T], received: Callable[[], int] = lambda: 0) -> T:
    """The answer to `request`, which runs in a thread of its own. Raises what it raises.

    Args:
        timeout: seconds after which `received` must have grown by as many KiB; else the thread is left to itself.
        received: bytes that have come so far.

    Raises:
        Silence: it has not.
    """
    answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            answers.put((request(), None))
        except BaseException as error:  # raised in the thread that waits
            answers.put((None, error))

    _thread.start_new_thread(run, ())  # nobody joins it, nor waits until it has begun
    size, last, marked = 0, None, time.monotonic()
    while True:
        try:
            answer, error = answers.get(timeout=min(POLL_S, timeout))
            break
        except Empty:
            now, grown = time.monotonic(), received()
            if grown - size >= SLOWEST * timeout:
                size, marked, last = grown, now, now
            elif now - marked >= timeout:
                raise Silence(timeout, last) from None
    if error is not None:
        raise error
    return answer


def get(downloader: Any, remote: str, target: Path, timeout: float) -> None:
    """Download `remote` to `target`, once.

    Args:
        downloader: Streaming's CloudDownloader.
        timeout: as for `within`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # One for each attempt: clients make files and locks of their own, and a thread left behind may still use its own.
    with tempfile.TemporaryDirectory(
        prefix=f"{target.name}.try-", dir=target.parent, ignore_cleanup_errors=True
    ) as folder:
        part = Path(folder, "file")
        within(timeout, lambda: downloader.download(remote, str(part), timeout), lambda: _bytes_in(part.parent))
        part.replace(target)


def stamp_of(source: Source) -> str:
    """What the store says of the remote's index.json as it is now, in one small request: its ETag, or size and time.

    "" where Streaming's downloader is of a store that we know no such request for.

    Raises:
        Exception: it can't be asked, or does not answer within the stream's download_timeout.
    """
    url = f"{str(source.remote).rstrip('/')}/{INDEX}"
    path = file_path(url)
    if path is not None:
        return within(source.timeout, lambda: _file_stamp(path))  # a network file system may be gone, too
    parts = urlsplit(url)
    bucket, key = parts.netloc, parts.path.lstrip("/")
    if parts.scheme == "s3":
        downloader = _s3_downloader(source)  # outside the time-out: its client's imports can take seconds
        return within(source.timeout, lambda: _s3_stamp(downloader, source.timeout, bucket, key))
    if parts.scheme == "gs":
        return within(source.timeout, lambda: _gs_stamp(type(source.downloader)(), bucket, key))
    return ""


def _file_stamp(path: str) -> str:
    found = os.stat(path)
    return f"{found.st_size} bytes of {found.st_mtime_ns}"


def _s3_downloader(source: Source) -> Any:
    """One of its own, with a client: a request that never ends must not hold up a download."""
    downloader = type(source.downloader)()
    downloader._create_s3_client(timeout=source.timeout)
    return downloader


def _s3_stamp(downloader: Any, timeout: float, bucket: str, key: str) -> str:
    """Asked as the downloader asks, payer and public buckets included."""
    from botocore.exceptions import ClientError, NoCredentialsError

    payer = {"RequestPayer": "requester"} if bucket in downloader._requester_pays_buckets else {}
    try:
        return str(downloader._s3_client.head_object(Bucket=bucket, Key=key, **payer)["ETag"])
    except NoCredentialsError:
        pass
    except ClientError as error:
        if error.response["Error"]["Code"] != "400":
            raise
    downloader._create_s3_client(unsigned=True, timeout=timeout)
    return str(downloader._s3_client.head_object(Bucket=bucket, Key=key, **payer)["ETag"])


def _gs_stamp(downloader: Any, bucket: str, key: str) -> str:
    downloader._create_gcs_client()
    client = downloader._gcs_client
    if hasattr(client, "head_object"):  # boto3's, where the keys are for it
        return str(client.head_object(Bucket=bucket, Key=key)["ETag"])
    blob = client.bucket(bucket).get_blob(key)
    if blob is None:
        raise FileNotFoundError(f"gs://{bucket}/{key}: not found")
    return str(blob.etag)


def is_final(error: BaseException) -> bool:
    """Whether it is missing or forbidden: asking again would not help."""
    if isinstance(error, FileNotFoundError | PermissionError | ImportError):
        return True
    return _code(error) in FINAL_CODES or _status(error) in FORBIDDEN_OR_MISSING


def is_outage(error: BaseException) -> bool:
    """Whether the store refused, was silent or said that it can't answer now."""
    for cause in _causes(error):
        status = _status(cause)
        if status is not None and (status in BUSY or status >= 500):
            return True
        if isinstance(cause, NO_ANSWER) or (isinstance(cause, OSError) and cause.errno in UNREACHABLE):
            return True
    return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those behind it. boto3 hands the last of several failures on as `last_exception`."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "last_exception", None) or error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status that the client's exception carries: boto3, requests, google, azure and oci have it elsewhere."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        found = [getattr(response, "status_code", None)]
    found += [getattr(error, name, None) for name in ("status_code", "status", "code")]
    return next((int(status) for status in found if isinstance(status, int) and 100 <= status < 600), None)


def _code(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _bytes_in(folder: Path) -> int:
    """Clients write under names of their own before they rename."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # it has just been renamed
            continue
    return total
