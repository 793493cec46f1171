"""Streaming 0.13's S3 downloader asks up to fifteen times by itself, each time as long as `download_timeout`.

Its client tries each request three times, and boto3's `download_file` tries a download five times, after a HEAD; with
our own attempts 5 s of a silent server become minutes. Nothing sets them, as they are hard-coded in
`S3Downloader._create_s3_client` and `_download_file_impl`. Upstream: no issue filed yet; mosaicml/streaming 0.13.0,
`streaming/base/storage/download.py`. Delete when the downloader takes its client's and its transfer's config.
"""

import os
from functools import partial
from typing import Any

from mosaic_photon.compat import streaming_lazy_package

streaming_lazy_package.install()

from streaming.base.storage import S3Downloader  # noqa: E402

NEEDED = "mosaicml-streaming"

CHUNK = 64 * 1024
"""Bytes from one write to the next, which show that something comes."""


class OneTry(S3Downloader):
    """S3Downloader that sends one request for a file, once."""

    def _create_s3_client(self, unsigned: bool = False, timeout: float = 60.0) -> Any:
        from boto3.session import Session
        from botocore import UNSIGNED
        from botocore.config import Config

        config = Config(connect_timeout=timeout, read_timeout=timeout, retries={"total_max_attempts": 1})
        if unsigned:  # a public bucket
            config = config.merge(Config(signature_version=UNSIGNED))
        client = Session().client("s3", config=config, endpoint_url=os.environ.get("S3_ENDPOINT_URL"))
        client.download_file = partial(_download_file, client)
        self._s3_client = client


def _download_file(client: Any, bucket: str, key: str, path: str, ExtraArgs: dict[str, Any], Config: Any) -> None:
    """boto3's method of this name."""
    body = client.get_object(Bucket=bucket, Key=key, **ExtraArgs)["Body"]
    with open(path, "wb", buffering=0) as file:
        for chunk in body.iter_chunks(CHUNK):
            file.write(chunk)


def asking_once(downloader: Any) -> Any:
    """The downloader, or for Streaming's S3 downloader one that leaves repeating to its caller."""
    return OneTry() if type(downloader) is S3Downloader else downloader
