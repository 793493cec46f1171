"""Has a remote changed? One small request tells, of a store that has one; of others the index itself is fetched."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from mosaic_photon.dataloader.shards.fetch import Source
from mosaic_photon.dataloader.shards.index import INDEX
from mosaic_photon.dataloader.shards.store import within
from mosaic_photon.places import file_path


def stamp_of(source: Source) -> str:
    """What the store says of the remote's index.json as it is now: its ETag, or size and time.

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
