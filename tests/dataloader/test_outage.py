"""Remotes that refuse, are silent, trickle or go away for a while."""

from __future__ import annotations

import errno
import logging
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests

from mds_data import job, numbers, wait_until
from mosaic_photon.compat.streaming_s3_retries import OneTry
from mosaic_photon.dataloader.loader import BATCHES_AHEAD
from mosaic_photon.dataloader.shards import patience, store
from mosaic_photon.dataloader.shards.fetch import Source
from mosaic_photon.dataloader.shards.index import LOCKS, DataError
from mosaic_photon.errors import ConfigError
from s3_proxy import Proxy, always, first, reset, silent, status, trickling


@pytest.mark.parametrize("answer", [status(503), status(429), reset, silent, trickling])
def test_a_remote_that_fails_for_a_while_is_waited_for(
    bucket: str, proxy: Proxy, mds: Path, tmp_path: Path, build: Any, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Without `download_retry`, which is for what is wrong, not for what is late. No sample is lost or doubled."""
    proxy.fault = first(3, answer)
    remote = {"remote": bucket, "local": str(tmp_path), "download_timeout": 1, "download_retry": 0, "shuffle": True}
    ours, local = iter(build(job(remote))), iter(build(job({"local": str(mds), "shuffle": True})))
    assert [numbers(next(ours)) for _ in range(100)] == [numbers(next(local)) for _ in range(100)]
    assert re.search(r"s3://data/.*: stream 'data': no answer", caplog.text)


def test_a_remote_that_is_gone_is_found_again(
    bucket: str, proxy: Proxy, mds: Path, tmp_path: Path, build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loader = build(job({"remote": bucket, "local": str(tmp_path), "download_retry": 0}))
    proxy.go_away()
    threading.Timer(3, proxy.come_back).start()
    local = iter(build(job({"local": str(mds)})))
    assert [numbers(batch) for batch, _ in zip(loader, range(100), strict=False)] == [
        numbers(next(local)) for _ in range(100)
    ]
    assert "waiting for it, 0 of at most 300 s so far" in caplog.text or "is read meanwhile" in caplog.text
    assert "answers again after" in caplog.text


def test_an_index_is_waited_for(bucket: str, proxy: Proxy, tmp_path: Path, build: Any) -> None:
    proxy.go_away()
    threading.Timer(2, proxy.come_back).start()
    build(job({"remote": bucket, "local": str(tmp_path), "download_retry": 0}))


@pytest.mark.parametrize("answer", [status(503), silent, trickling])
def test_patience_ends_in_an_error_that_says_how_long_it_was(
    bucket: str, proxy: Proxy, tmp_path: Path, build: Any, answer: Any
) -> None:
    proxy.fault = always(answer)
    remote = {"remote": bucket, "local": str(tmp_path), "download_timeout": 1}
    loader = build(job(remote, download_patience_seconds=3))
    with pytest.raises(DataError, match=r"s3://data/shard.*no answer: .*waited for \d+ s \(mosaic.download_patience"):
        next(iter(loader))
    loader.close()
    assert not list(tmp_path.glob("shard*/*"))  # nor anything of what came


def test_nothing_there(tmp_path: Path, build: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    config = job({"remote": bucket, "local": str(tmp_path)}, download_patience_seconds=1)
    with pytest.raises(DataError, match=r"index\.json: stream 'data': no answer: .* Could not connect"):
        build(config)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_is_missing_or_forbidden_is_not_waited_for(
    bucket: str, proxy: Proxy, tmp_path: Path, build: Any, code: int
) -> None:
    proxy.fault = always(status(code))
    with pytest.raises(DataError, match=r"shard.*download failed after 1 attempt"):
        next(iter(build(job({"remote": bucket, "local": str(tmp_path), "download_retry": 9}))))


def test_a_silent_server_is_asked_once_for_each_attempt(
    bucket: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a store's client repeats by itself would multiply `download_timeout`."""
    monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
    proxy.fault = always(silent)
    downloader = OneTry()
    store.get(downloader, f"{bucket}/index.json", tmp_path / "index.json", timeout=60)  # makes the client
    with pytest.raises(TimeoutError):
        store.get(downloader, f"{bucket}/shard.00000.mds", tmp_path / "shard", timeout=1)
    time.sleep(2)  # a second request of the client's would come now
    assert proxy.shard_gets == 1 and [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_what_a_client_leaves_is_removed(tmp_path: Path) -> None:
    """Folders, too; what the client raised stays what is raised."""

    class Client:
        def download(self, remote: str, local: str, timeout: float) -> None:
            Path(f"{local}.parts").mkdir()
            raise ConnectionResetError("by the store")

    with pytest.raises(ConnectionResetError, match="by the store"):
        store.get(Client(), "s3://a/shard", tmp_path / "shard", timeout=60)
    assert not list(tmp_path.iterdir())


def test_a_request_left_behind_does_not_reach_the_next(tmp_path: Path) -> None:
    """It writes neither beside the result nor where the next one's bytes are counted."""
    awake, done, folders = threading.Event(), threading.Event(), set[Path]()

    class Client:
        def download(self, remote: str, local: str, timeout: float) -> None:
            folders.add(Path(local).parent)
            if remote == "stuck":
                awake.wait(60)
            try:
                Path(local).write_text(remote)
            finally:
                done.set()

    with pytest.raises(store.Silence):
        store.get(Client(), "stuck", tmp_path / "shard", timeout=0.1)
    store.get(Client(), "next", tmp_path / "shard", timeout=60)
    done.clear()
    awake.set()
    assert done.wait(60)
    assert list(tmp_path.iterdir()) == [tmp_path / "shard"] and (tmp_path / "shard").read_text() == "next"
    assert len(folders - {tmp_path}) == 2


def test_what_is_fetched_ahead_is_no_reason_to_end(bucket: str, proxy: Proxy, tmp_path: Path, build: Any) -> None:
    """While the shards that are needed are here, an outage may last longer than the patience."""
    out = always(status(503))
    proxy.fault = lambda handler: not re.search(r"shard\.0000[0-2]", handler.path) and out(handler)
    loader = iter(build(job({"remote": bucket, "local": str(tmp_path)}, download_patience_seconds=0.5)))
    assert numbers(next(loader)) == [0, 1]
    wait_until(lambda: len(list(tmp_path.glob("shard.*.mds"))) == 3)
    asked = proxy.shard_gets
    wait_until(lambda: proxy.shard_gets > asked + 8)
    read = []
    with pytest.raises(DataError, match="no answer"):
        while True:
            read += numbers(next(loader))
    assert read == list(range(2, 2 + len(read))) and len(read) > 2 * BATCHES_AHEAD


def test_a_wait_is_said_once_for_all_ranks_of_a_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / LOCKS).mkdir()
    ranks = [Source("data", tmp_path, "s3://data", patience=2) for _ in range(3)]
    for rank in ranks:
        patience.say(rank, "no answer")
    assert caplog.text.count("no answer") == 1


@pytest.mark.parametrize(
    ("given", "ranks", "timeout", "expected"),
    [(None, 1, 100, 300), (None, 8, 100, 80), (None, 8, 1000, 240), (60, 8, 100, 60), (900, 1, 100, 900)],
)
def test_how_long_a_rank_waits(given: float | None, ranks: int, timeout: int, expected: float) -> None:
    """The others wait in a collective for it. TorchTitan gives them 300 s for the first step."""
    config = job({}, download_patience_seconds=given)
    config.comm.train_timeout_seconds = timeout
    assert patience.patience_of(config, ranks) == expected


def test_patience_that_the_other_ranks_do_not_have() -> None:
    config = job({}, download_patience_seconds=90)
    message = r"mosaic\.download_patience_seconds = 90: .*comm\.train_timeout_seconds = 100 .* at most 80, .* least 112"
    with pytest.raises(ConfigError, match=message):
        patience.patience_of(config, 2)


def _refused() -> None:
    requests.get("http://127.0.0.1:9", timeout=5)


def _no_such_host() -> None:
    boto3.client("s3", endpoint_url="http://host.invalid").get_object(Bucket="data", Key="shard")


def _silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        requests.get(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=0.2)


def _busy() -> None:
    response = requests.Response()
    response.status_code = 503
    response.raise_for_status()


def _no_route() -> None:
    raise OSError(errno.EHOSTUNREACH, "no route")


class _OfAzure(Exception):
    status_code = 503


def _busy_azure() -> None:
    raise _OfAzure


def _missing() -> None:
    response = requests.Response()
    response.status_code = 404
    response.raise_for_status()


def _full() -> None:
    raise OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize("fail", [_refused, _no_such_host, _silent, _busy, _no_route, _busy_azure])
def test_what_is_an_outage(fail: Any, s3: Any) -> None:
    with pytest.raises(Exception) as failure:
        fail()
    assert store.is_outage(failure.value) and not store.is_final(failure.value)


@pytest.mark.parametrize("fail", [_missing, _full])
def test_what_is_none(fail: Any) -> None:
    with pytest.raises(Exception) as failure:
        fail()
    assert not store.is_outage(failure.value)


def test_a_restart_on_a_warm_cache_asks_for_no_shard(bucket: str, proxy: Proxy, tmp_path: Path, build: Any) -> None:
    config = job({"remote": bucket, "local": str(tmp_path)})
    for _ in zip(build(config), range(110), strict=False):  # past the end of an epoch
        pass
    proxy.requests.clear()
    for _ in zip(build(config), range(110), strict=False):
        pass
    assert proxy.shard_gets == 0 and len(proxy.requests) <= 1


@pytest.mark.parametrize(("seconds", "longest"), [(0.0, 60.0), (30.0, 30.0), (300.0, 60.0)])
def test_an_attempt_has_its_time_out_within_the_patience_and_all_of_it_where_there_is_none(
    seconds: float, longest: float
) -> None:
    """`doctor` and `inspect` have none; a store that takes two seconds to answer is no outage for them."""
    source = Source("a", Path("/cache"), "s3://bucket", timeout=60.0, patience=seconds)
    assert patience.patiently(source, lambda source: source.timeout) == pytest.approx(longest, abs=1.0)
