"""The cache when it is full, slow or shared: no shard goes too early or is tried in vain."""

from __future__ import annotations

import fcntl
import os
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from streaming.base.storage import CloudDownloader

from mds_data import job, numbers, write_mds
from mosaic_photon import waiting
from mosaic_photon.dataloader.shards import cache as cache_module
from mosaic_photon.dataloader.shards import fetch
from mosaic_photon.dataloader.shards import ledger as ledger_module
from mosaic_photon.dataloader.shards import room as room_module
from mosaic_photon.dataloader.shards import slot as slot_module
from mosaic_photon.dataloader.shards.ahead import FetchAhead
from mosaic_photon.dataloader.shards.cache import ShardCache
from mosaic_photon.dataloader.shards.cache_folder import open_source
from mosaic_photon.dataloader.shards.claim import PARTS, lock_path, part_path
from mosaic_photon.dataloader.shards.fetch import Source
from mosaic_photon.dataloader.shards.index import DataError
from mosaic_photon.dataloader.shards.ledger import Ledger
from mosaic_photon.dataloader.shards.table import read_index
from mosaic_photon.waiting import Count


def remote_job(remote: Path, cache: Path, **dataset: Any) -> Any:
    return job({"remote": str(remote), "local": str(cache), "download_retry": 0, **dataset})


def remote_source(remote: Path, cache: Path) -> Source:
    return Source("data", cache, str(remote), downloader=CloudDownloader.get(str(remote)))


def bytes_in(folder: Path) -> int:
    """Of the shards, also of parts of them, while others add and remove some."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (
                    os.stat(os.path.join(parent, name)).st_size
                    if not name.startswith((".mosaic_photon.", "index"))
                    else 0
                )
            except FileNotFoundError:
                continue
    return total


def test_what_is_fetched_and_verified_is_counted(mds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For whoever waits for the first step."""
    fetched, verified = Count("fetched"), Count("verified")
    monkeypatch.setattr(waiting, "fetched", fetched)
    monkeypatch.setattr(waiting, "verified", verified)
    index = read_index(mds)
    cache = ShardCache([remote_source(mds, tmp_path)], [index])
    assert waiting.under_way() is None
    for shard_id in range(2):
        cache.ensure(shard_id)
    here = sum(cache.slot(shard_id).shard.raw.bytes for shard_id in range(2))
    assert waiting.under_way() is fetched
    assert fetched.done == here
    cache.check(hashes=True)
    assert (verified.done, verified.total) == (here, here)
    assert waiting.under_way() is fetched


def test_one_who_waits_for_a_shard_that_cannot_be_fetched_does_not_try_again(
    mds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the next call."""
    index, attempts = read_index(mds), []
    cache = ShardCache([Source("data", tmp_path, str(mds))], [index])
    waits = threading.Event()
    locked = slot_module.locked

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
    monkeypatch.setattr(slot_module, "locked", locked_and_told)
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
    locked = slot_module.locked

    @contextmanager
    def held_by_another_until_now(path: Path, wait: bool = True) -> Iterator[bool]:
        if path.name == shard.name:
            shard.write_bytes(whole)
        with locked(path, wait) as held:
            yield held

    monkeypatch.setattr(slot_module, "locked", held_by_another_until_now)
    build(config)
    assert shard.exists()


def test_prefetched_shards_are_not_evicted_before_they_are_read(
    mds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many samples ahead are asked for, they fill half of the limit."""
    source, index = open_source(remote_source(mds, tmp_path))
    cache = ShardCache([source], [index], 8 * max(shard.raw.bytes for shard in index))
    fetched, arrived, ahead = [], threading.Semaphore(0), []

    def download(source: Source, basename: str, *rest: Any) -> None:
        fetched.append(basename)
        ahead.append(len(fetched) - passed)
        fetch.download(source, basename, *rest)
        arrived.release()

    monkeypatch.setattr(cache_module, "download", download)
    fetcher, passed = FetchAhead(cache, threads=1), 0
    fetcher.plan([np.arange(len(index))], samples_ahead=10_000)  # one sample a shard
    for _ in range(4):
        arrived.acquire()
    time.sleep(0.2)  # in which a fifth must not come
    for passed in range(1, len(index) + 1):
        fetcher.advance(passed)
        if passed + 4 <= len(index):
            arrived.acquire()
    fetcher.close()
    assert fetched == [shard.raw.basename for shard in index] and max(ahead) == 4


def fetching(cache: ShardCache, shard_id: int) -> TextIOWrapper:
    """Another process begins to fetch the shard; it goes on as long as the file is open."""
    folder, name = cache.sources[0].folder, cache.shards[shard_id].raw.basename
    (folder / ".locks").mkdir(exist_ok=True)
    lock = lock_path(folder, name).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    cache._room.reserve(cache.slot(shard_id))
    return lock


def test_a_slow_remote_is_no_lack_of_room(mds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While others fetch, and so fill the limit, one waits; when nobody does and there is no room, it is an error."""
    (source, index), now = open_source(remote_source(mds, tmp_path)), [0.0]
    limit = 4 * max(shard.raw.bytes for shard in index)
    other, cache = (ShardCache([source], [index], limit) for _ in range(2))
    held = [fetching(other, number) for number in range(4)]

    def sleep(_: float) -> None:
        now[0] += 50
        if now[0] > 300 and held:
            held.pop().close()

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep, time_ns=time.time_ns)
    monkeypatch.setattr(room_module, "time", clock)
    cache.ensure(5)
    assert now[0] > 300 and cache.is_here(5)

    def not_ours(*_: Any) -> None:
        raise PermissionError

    while held:
        held.pop().close()
    monkeypatch.setattr(room_module, "_remove", not_ours)
    (tmp_path / "shard.00005.mds").unlink()
    with pytest.raises(DataError, match=r"cache_limit: no room for shard\.00006\.mds within 60 s"):
        cache.ensure(6)


def test_a_fetch_that_ends_while_room_is_sought_counts(
    mds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, index = open_source(remote_source(mds, tmp_path))
    other, cache = (ShardCache([source], [index], 4 * max(shard.raw.bytes for shard in index)) for _ in range(2))
    for shard_id in (1, 2, 3):
        cache.ensure(shard_id)
    lock, read = fetching(other, 0), Ledger.read

    def read_and_then_the_end_of_its_fetch(ledger: Ledger) -> Any:
        table = read(ledger)
        if not (tmp_path / "shard.00000.mds").exists():
            part_path(tmp_path, "shard.00000.mds").rmdir()
            (tmp_path / "shard.00000.mds").write_bytes((mds / "shard.00000.mds").read_bytes())
            other._room.enter(other.slot(0))
        return table

    monkeypatch.setattr(Ledger, "read", read_and_then_the_end_of_its_fetch)
    cache.ensure(5)
    lock.close()
    assert len(list(tmp_path.glob("shard.*.mds"))) == 4


def test_room_is_found_without_looking_at_the_folder(
    mds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in it, and however many shards the data has; only the shard itself is."""
    source, index = open_source(remote_source(mds, tmp_path))
    cache = ShardCache([source], [index], 4 * max(shard.raw.bytes for shard in index))
    cache.check()
    looked: list[str] = []
    size_of = room_module.size_of
    monkeypatch.setattr(ledger_module, "list_folder", lambda *_: pytest.fail("the folder was listed"))
    monkeypatch.setattr(room_module, "size_of", lambda path: looked.append(path.name) or size_of(path))
    for shard_id in (0, 1, 2, 3, 0, 4, 5):
        cache.ensure(shard_id)
    here = sorted(path.name for path in tmp_path.glob("shard*"))
    assert here == [f"shard.0000{number}.mds" for number in (0, 3, 4, 5)]  # 0 was opened again
    assert looked == [f"shard.0000{number}.mds" for number in range(6)]


def test_a_stream_on_this_disk_needs_no_room(mds: Path, tmp_path: Path) -> None:
    """Its bytes don't count, nothing of it goes, and no lock is written into it."""
    own = write_mds(tmp_path / "own", 600)
    before = sorted(path.name for path in own.iterdir())
    opened = [open_source(Source("own", own)), open_source(remote_source(mds, tmp_path / "cache"))]
    sources, indexes = zip(*opened, strict=True)
    largest = max(shard.raw.bytes for index in indexes for shard in index)
    cache = ShardCache(sources, indexes, 4 * largest)
    cache.check()
    for shard_id in range(len(cache.shards)):
        cache.ensure(shard_id)
    assert sorted(path.name for path in own.iterdir()) == before
    assert 0 < bytes_in(tmp_path / "cache") <= 4 * largest


def test_other_jobs_count_what_one_without_a_limit_fetches(mds: Path, tmp_path: Path) -> None:
    source, index = open_source(remote_source(mds, tmp_path))
    largest = max(shard.raw.bytes for shard in index)
    limited, unlimited = ShardCache([source], [index], 4 * largest), ShardCache([source], [index])
    limited.ensure(0)
    for shard_id in range(1, 8):
        unlimited.ensure(shard_id)
    limited.ensure(9)
    assert 0 < bytes_in(tmp_path) <= 4 * largest


@pytest.mark.parametrize("complete", [False, True])
def test_a_cache_knows_whether_it_is_complete(mds: Path, tmp_path: Path, complete: bool) -> None:
    source, index = open_source(remote_source(mds, tmp_path))
    first = ShardCache([source], [index])
    for shard_id in range(len(index) - (not complete)):
        first.ensure(shard_id)
    cache = pickle.loads(pickle.dumps(ShardCache([source], [index])))  # as a spawned worker gets it
    assert not cache.complete
    cache.check()
    assert cache.complete == complete


def test_the_cache_stays_under_its_limit_and_the_samples_the_same(mds: Path, tmp_path: Path, build: Any) -> None:
    cache = tmp_path / "cache"
    largest = max(path.stat().st_size for path in mds.glob("*.mds"))
    limited = iter(build(remote_job(mds, cache, cache_limit=5 * largest, shuffle=True)))
    plain = iter(build(job({"local": str(mds), "shuffle": True})))
    most = 0
    for _ in range(150):
        assert numbers(next(limited)) == numbers(next(plain))
        most = max(most, min(bytes_in(cache) for _ in range(3)))  # a file that moves meanwhile is counted twice
    assert 0 < most <= 5 * largest


def test_what_a_killed_download_left_is_swept_and_a_running_one_is_not(mds: Path, tmp_path: Path, build: Any) -> None:
    for number in (3, 4):
        part_path(tmp_path, f"shard.0000{number}.mds").mkdir(parents=True)
    (tmp_path / ".locks").mkdir()
    with (tmp_path / ".locks" / "shard.00004.mds").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build(remote_job(mds, tmp_path))
    assert list((tmp_path / PARTS).iterdir()) == [part_path(tmp_path, "shard.00004.mds")]
