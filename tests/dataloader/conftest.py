"""Shared fixtures: loaders, MDS data, an S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from mds_data import ASSETS, write_mds
from mosaic_photon.dataloader import DataSpecDataLoader
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.train.data import build_dataloader
from s3_proxy import Proxy


@pytest.fixture(scope="session")
def tokenizer() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(str(ASSETS))


@pytest.fixture
def build(tokenizer: HuggingFaceTokenizer) -> Iterator[Any]:
    """Builds a rank's loader as a job does; all are closed at the end of the test."""
    built: list[DataSpecDataLoader] = []

    def build_one(config: MosaicJobConfig, dp: int = 1, rank: int = 0) -> DataSpecDataLoader:
        loader = build_dataloader(dp_world_size=dp, dp_rank=rank, tokenizer=tokenizer, job_config=config)
        built.append(loader)
        return loader

    yield build_one
    for loader in built:
        loader.close()


@pytest.fixture(scope="session")
def mds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """203 samples in shards of 16."""
    return write_mds(tmp_path_factory.mktemp("mds"), 203)


def stop(process: subprocess.Popen[Any]) -> None:
    """Ask it to end, and make it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class S3Server:
    """A moto S3 server in a process of its own, and a client for it."""

    def __init__(self, log: Path) -> None:
        import boto3

        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with log.open("w") as out:
            command = [sys.executable, "-m", "moto.server", "-p", "0"]
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        self.url = self._wait_for_url(log)
        self.client = boto3.client("s3", endpoint_url=self.url)

    def _wait_for_url(self, log: Path) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            lines = [line for line in log.read_text().splitlines() if "Running on http://" in line]
            if lines:
                url = lines[-1].split("Running on ")[1].strip()
                urllib.request.urlopen(f"{url}/moto-api/", timeout=10)
                return url
            time.sleep(0.05)
        raise RuntimeError(f"the S3 server did not start: {log.read_text()}")

    def upload(self, folder: Path, bucket: str) -> str:
        self.client.create_bucket(Bucket=bucket)
        for path in folder.rglob("*"):
            if path.is_file() and ".locks" not in path.parts:
                self.client.upload_file(str(path), bucket, str(path.relative_to(folder)))
        return f"s3://{bucket}"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server, with the environment set so that boto3 and Streaming use it."""
    settings = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        server = S3Server(tmp_path_factory.mktemp("s3") / "log")
        patch.setenv("S3_ENDPOINT_URL", server.url)
        yield server
        stop(server.process)


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What boto3 and Streaming take for the server."""
    proxy = Proxy(s3.url)
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def bucket(s3: S3Server, mds: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The 203 samples, and the same compressed under packed/."""
    packed = write_mds(tmp_path_factory.mktemp("packed") / "packed", 203, compression="zstd")
    s3.upload(packed.parent, "packed")
    return s3.upload(mds, "data")
