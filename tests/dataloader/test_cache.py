"""The cache when it is full, slow or shared: no shard goes too early or is tried in vain."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from streaming.base.storage import CloudDownloader

from mds_data import job, numbers, write_mds
from mosaic_photon.dataloader import cache as cache_module
from mosaic_photon.dataloader import fetch
from mosaic_photon.dataloader.ahead import FetchAhead
from mosaic_photon.dataloader.cache import ShardCache
from mosaic_photon.dataloader.fetch import Source
from mosaic_photon.dataloader.index import DataError
from mosaic_photon.dataloader.shards import read_index


def remote_job(remote: Path, cache: Path, **dataset: Any) -> Any:
    return job({"remote": str(remote), "local": str(cache), "download_retry": 0, **dataset})


def bytes_in(folder: Path) -> int:
    """Of the shards, also of parts of them, while others add and remove some."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size if name != "index.json" else 0
            except FileNotFoundError:
                continue
    return total


def test_one_who_waits_for_a_shard_that_cannot_be_fetched_does_not_try_again(
    mds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the next call."""
    index, attempts = read_index(mds), []
    cache = ShardCache([Source("data", tmp_path, str(mds))], [index])
    waits = threading.Event()
    locked = cache_module.locked

    @contextmanager
    def locked_and_told(path: Path, wait: bool = True) -> Iterator[bool]:
        if threading.current_thread() is not threading.main_thread():
            waits.set()
        with locked(path, wait) as held:
            yield held

    def download(*_: Any) -> None:
        attempts.append(threading.current_thread().name)
        if threading.current_thread() is threading.main_thread() and len(attempts) == 1:
            waiting.start()
            waits.wait()
        raise DataError("the remote is gone")

    errors: list[str] = []

    def wait_for_it() -> None:
        try:
            cache.ensure(0)
        except DataError as error:
            errors.append(str(error))

    waiting = threading.Thread(target=wait_for_it)
    monkeypatch.setattr(cache_module, "locked", locked_and_told)
    monkeypatch.setattr(cache_module, "download", download)
    for _ in range(2):
        with pytest.raises(DataError, match="the remote is gone"):
            cache.ensure(0)
        waiting.join()
    assert attempts == ["MainThread"] * 2 and errors == ["the remote is gone"]


def test_a_file_that_was_fetched_again_meanwhile_is_not_removed(
    mds: Path, tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process replaces the damaged file while it holds the shard's lock."""
    config, shard = remote_job(mds, tmp_path), tmp_path / "shard.00002.mds"
    build(config)
    shard.write_bytes(b"cut")
    whole = (mds / shard.name).read_bytes()
    locked = cache_module.locked

    @contextmanager
    def held_by_another_until_now(path: Path, wait: bool = True) -> Iterator[bool]:
        if path.name == shard.name:
            shard.write_bytes(whole)
        with locked(path, wait) as held:
            yield held

    monkeypatch.setattr(cache_module, "locked", held_by_another_until_now)
    build(config)
    assert shard.exists()


def test_prefetched_shards_are_not_evicted_before_they_are_read(
    mds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many samples ahead are asked for, they fill half of the limit."""
    index = read_index(mds)
    source = Source("data", tmp_path, str(mds), downloader=CloudDownloader.get(str(mds)))
    cache = ShardCache([source], [index], 8 * max(shard.raw.bytes for shard in index))
    fetched, arrived, ahead = [], threading.Semaphore(0), []

    def download(source: Source, basename: str, *rest: Any) -> None:
        fetched.append(basename)
        ahead.append(len(fetched) - passed)
        fetch.download(source, basename, *rest)
        arrived.release()

    monkeypatch.setattr(cache_module, "download", download)
    fetcher, passed = FetchAhead(cache, threads=1), 0
    fetcher.plan(np.arange(len(index)), samples_ahead=10_000)  # one sample a shard
    for _ in range(4):
        arrived.acquire()
    time.sleep(0.2)  # in which a fifth must not come
    for passed in range(1, len(index) + 1):
        fetcher.advance(passed)
        if passed + 4 <= len(index):
            arrived.acquire()
    fetcher.close()
    assert fetched == [shard.raw.basename for shard in index] and max(ahead) == 4


def test_a_slow_remote_is_no_lack_of_room(mds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While others fetch, and so fill the limit, one waits; when nobody does and there is no room, it is an error."""
    index, now = read_index(mds), [0.0]
    largest = max(shard.raw.bytes for shard in index)
    source = Source("data", tmp_path, str(mds), downloader=CloudDownloader.get(str(mds)))
    cache = ShardCache([source], [index], 4 * largest)
    held = []
    for number in range(4):
        (tmp_path / f"shard.0000{number}.mds.part").mkdir()
        (tmp_path / ".locks").mkdir(exist_ok=True)
        held.append((tmp_path / ".locks" / f"shard.0000{number}.mds").open("w"))
        fcntl.flock(held[-1], fcntl.LOCK_EX)

    def sleep(_: float) -> None:
        now[0] += 50
        if now[0] > 300 and held:
            held.pop().close()

    monkeypatch.setattr(cache_module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    cache.ensure(5)
    assert now[0] > 300 and cache.is_here(5)

    here = write_mds(tmp_path / "here", 80)
    local = Source("local", here)
    cache = ShardCache([source, local], [index, read_index(here)], 4 * largest)
    (tmp_path / "shard.00005.mds").unlink()
    with pytest.raises(DataError, match=r"cache_limit: no room for shard\.00005\.mds within 60 s"):
        cache.ensure(5)


def test_a_fetch_that_ends_while_room_is_sought_counts(
    mds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, size_of = read_index(mds), cache_module.size_of
    source = Source("data", tmp_path, str(mds), downloader=CloudDownloader.get(str(mds)))
    cache = ShardCache([source], [index], 4 * max(shard.raw.bytes for shard in index))
    for shard_id in (1, 2, 3):
        cache.ensure(shard_id)
    shard, part = tmp_path / "shard.00000.mds", tmp_path / "shard.00000.mds.part"
    part.mkdir()

    def size_and_then_the_end_of_its_fetch(path: Path) -> int | None:
        size = size_of(path)
        if path == shard and part.exists():
            part.rmdir()
            shard.write_bytes((mds / shard.name).read_bytes())
        return size

    monkeypatch.setattr(cache_module, "size_of", size_and_then_the_end_of_its_fetch)
    with (tmp_path / ".locks" / shard.name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache.ensure(5)
    assert len(list(tmp_path.glob("shard.*.mds"))) == 4


def test_the_cache_stays_under_its_limit_and_the_samples_the_same(mds: Path, tmp_path: Path, build: Any) -> None:
    cache = tmp_path / "cache"
    largest = max(path.stat().st_size for path in mds.glob("*.mds"))
    limited = iter(build(remote_job(mds, cache, cache_limit=5 * largest, shuffle=True)))
    plain = iter(build(job({"local": str(mds), "shuffle": True})))
    most = 0
    for _ in range(150):
        assert numbers(next(limited)) == numbers(next(plain))
        most = max(most, bytes_in(cache))
    assert 0 < most <= 5 * largest


def test_what_a_killed_download_left_is_swept_and_a_running_one_is_not(mds: Path, tmp_path: Path, build: Any) -> None:
    for number in (3, 4):
        (tmp_path / f"shard.0000{number}.mds.part").mkdir()
    (tmp_path / ".locks").mkdir()
    with (tmp_path / ".locks" / "shard.00004.mds").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build(remote_job(mds, tmp_path))
    assert [path.name for path in tmp_path.glob("*.part")] == ["shard.00004.mds.part"]
