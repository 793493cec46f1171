"""Shared fixtures: small real data, and real jobs launched as a user launches them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # here and in what tests start: another number of threads adds up in another order

import pytest

import mosaic_photon.titan  # noqa: F401  (before any test imports TorchTitan)
from s3_proxy import Proxy
from s3_server import S3Server, stop

ROOT = Path(__file__).parent.parent
STARTED_IN = Path.cwd()
TOKENIZER = ROOT / "tests" / "assets" / "tokenizer"


@pytest.fixture(autouse=True)
def folder_as_it_was() -> Iterator[None]:
    """A test and its fixtures come back from where they go: the next one in the process names files as from here."""
    yield
    left_in = Path.cwd()
    os.chdir(STARTED_IN)
    assert left_in == STARTED_IN


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MDS shards of a little of the standard library, 65 tokens a sample: train/ and val/."""
    out = tmp_path_factory.mktemp("data") / "shards"
    sources = [str(Path(module.__file__ or "").parent) for module in (__import__("json"), __import__("email"))]
    command = [sys.executable, "-m", "mosaic_photon.cli", "prepare", *sources, "--out", str(out), "--val=0.2"]
    command += ["--tokenizer", str(TOKENIZER), "--seq-len=64", "--workers=1"]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server, with the environment set so that boto3, fsspec and Streaming use it."""
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
