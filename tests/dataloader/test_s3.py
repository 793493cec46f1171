"""Reading from S3, over HTTP, with the network failing in between."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mds_data import job, numbers, wait_until, write_mds
from mosaic_photon.dataloader.index import DataError


class Proxy:
    """Stands between a client and the S3 server; `fault(handler)` may answer a GET of a shard in the server's place."""

    def __init__(self, url: str) -> None:
        self.fault: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        self.shard_gets = 0
        target, proxy = urlsplit(url), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.command == "GET" and "shard" in self.path:
                    proxy.shard_gets += 1
                    if proxy.fault(self):
                        return
                connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=30)
                connection.request(self.command, self.path, headers=dict(self.headers))
                answer = connection.getresponse()
                body = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def proxy(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(s3.url)
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # what botocore repeats by itself is not what is tested here
    yield proxy
    proxy.server.shutdown()


@pytest.fixture(scope="session")
def bucket(s3: Any, mds: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The 203 samples, and the same compressed under packed/."""
    packed = write_mds(tmp_path_factory.mktemp("packed") / "packed", 203, compression="zstd")
    s3.upload(packed.parent, "packed")
    return s3.upload(mds, "data")


def first_fail(
    count: int, answer: Callable[[BaseHTTPRequestHandler], None]
) -> Callable[[BaseHTTPRequestHandler], bool]:
    lock, left = threading.Lock(), [count]

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        with lock:
            left[0] -= 1
            if left[0] < 0:
                return False
        answer(handler)
        return True

    return fault


def unavailable(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(503)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def broken_off(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x" * 10)
    handler.close_connection = True


def reset(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()
    handler.close_connection = True


@pytest.mark.parametrize("remote", ["s3://data", "s3://packed/packed"])
def test_an_epoch_from_s3_equals_the_local_one(bucket: str, mds: Path, tmp_path: Path, build: Any, remote: str) -> None:
    ours = iter(build(job({"remote": remote, "local": str(tmp_path), "shuffle": True, "validate_hash": "xxh64"})))
    local = iter(build(job({"local": str(mds), "shuffle": True})))
    assert [numbers(next(ours)) for _ in range(120)] == [numbers(next(local)) for _ in range(120)]


@pytest.mark.parametrize("answer", [unavailable, reset])
def test_failures_that_pass_are_retried_with_back_off(
    bucket: str, proxy: Proxy, tmp_path: Path, build: Any, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.fault = first_fail(2, answer)
    loader = build(job({"remote": bucket, "local": str(tmp_path), "download_retry": 2}))
    begin = time.monotonic()
    read = [numbers(batch) for batch, _ in zip(loader, range(100), strict=False)]
    assert read[0] == [0, 1] and time.monotonic() - begin > 1
    assert "attempt 1 of 3 failed, again in" in caplog.text


def test_an_answer_that_breaks_off_is_not_taken_for_a_shard(
    bucket: str, proxy: Proxy, mds: Path, tmp_path: Path, build: Any
) -> None:
    proxy.fault = first_fail(3, broken_off)  # boto3 itself tries again
    loader = build(job({"remote": bucket, "local": str(tmp_path)}))
    assert numbers(next(iter(loader))) == [0, 1]
    assert (tmp_path / "shard.00000.mds").read_bytes() == (mds / "shard.00000.mds").read_bytes()


def test_a_failure_that_lasts_is_an_error_that_names_shard_and_reason(
    bucket: str, proxy: Proxy, tmp_path: Path, build: Any
) -> None:
    proxy.fault = first_fail(10**6, unavailable)
    loader = build(job({"remote": bucket, "local": str(tmp_path), "download_retry": 1}))
    with pytest.raises(DataError, match=r"s3://data/shard\.\d+\.mds: .*failed after 2 attempt\(s\): ClientError.*503"):
        next(iter(loader))
    loader.close()
    wait_until(lambda: not list(tmp_path.glob("shard*")))  # the other threads are still trying


def test_what_is_not_there_is_not_retried(bucket: str, tmp_path: Path, build: Any) -> None:
    with pytest.raises(DataError, match=r"s3://data/no/index\.json: .*failed after 1 attempt.*not found"):
        build(job({"remote": f"{bucket}/no", "local": str(tmp_path), "download_retry": 9}))


def test_a_server_that_does_not_answer(
    tmp_path: Path, build: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError, match=r"index\.json: stream 'data': download failed .* Could not connect"):
        build(job({"remote": bucket, "local": str(tmp_path), "download_retry": 0}))


def test_each_shard_is_fetched_once_for_all_ranks_of_a_node(
    bucket: str, proxy: Proxy, tmp_path: Path, build: Any
) -> None:
    config = job({"remote": bucket, "local": str(tmp_path), "shuffle": True})
    ranks = [iter(build(config, 2, rank)) for rank in range(2)]
    threads = [threading.Thread(target=lambda r=r: [next(r) for _ in range(40)]) for r in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert proxy.shard_gets == len(list(tmp_path.glob("shard.*.mds"))) > 10
