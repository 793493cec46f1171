"""One reader, one thread after another, whatever the first still waits for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streaming.base.storage import CloudDownloader

from mds_data import job, numbers
from mosaic_photon.dataloader.shards import ahead
from mosaic_photon.dataloader.shards.cache import ShardCache
from mosaic_photon.dataloader.shards.fetch import Source
from mosaic_photon.dataloader.shards.reader import ShardReader
from mosaic_photon.dataloader.shards.table import read_index


def open_shards(folder: Path) -> list[str]:
    """The shard files in the folder that this process has open."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        except FileNotFoundError:
            continue
    return sorted(path.name for path in links if path.parent == folder and path.suffix == ".mds")


class Slow:
    """`ShardCache.open` that waits for `go` the first time that a thread of this name opens a shard."""

    def __init__(self, thread: str, opened: Callable[..., int]) -> None:
        self.thread, self.opened = thread, opened
        self.waits, self.go = threading.Event(), threading.Event()

    def __call__(self, shard_id: int) -> int:
        if threading.current_thread().name == self.thread and not self.waits.is_set():
            self.waits.set()
            self.go.wait()
        return self.opened(shard_id)


def test_a_thread_that_comes_back_late_touches_no_shard_of_the_next(mds: Path, tmp_path: Path) -> None:
    """Under a cache limit one shard is open at a time: a second would hold the space of a shard that has gone."""
    index = read_index(mds)
    source = Source("data", tmp_path, str(mds), downloader=CloudDownloader.get(str(mds)))
    cache = ShardCache([source], [index], 8 * max(shard.raw.bytes for shard in index))
    reader = ShardReader(cache)
    slow = cache.open = Slow("late", cache.open)  # type: ignore[method-assign]
    late = threading.Thread(target=reader.shard, args=(0,), name="late")
    late.start()
    slow.waits.wait()
    reader.close()
    opened = reader.shard(1)
    slow.go.set()
    late.join()
    assert open_shards(tmp_path) == ["shard.00001.mds"] and reader.shard(1) is opened


def test_a_second_iteration_reads_while_the_first_still_waits(
    mds: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same samples, from the place where the first was."""
    plain = build(job({"local": str(mds), "shuffle": True}))
    expected = [numbers(batch) for batch, _ in zip(plain, range(30), strict=False)]
    loader = build(job({"local": str(mds), "shuffle": True}))
    cache = loader.data.dataset.cache
    slow = Slow("mosaic-read", cache.open)
    monkeypatch.setattr(cache, "open", slow)
    monkeypatch.setattr(ahead, "LEAVE_AFTER_S", 0.1)
    first = iter(loader)
    waiting = threading.Thread(target=lambda: list(first), name="takes")  # as a trainer would
    waiting.start()
    slow.waits.wait()
    second = iter(loader)
    seen = [numbers(next(second)) for _ in range(15)]
    slow.go.set()
    waiting.join()
    assert seen + [numbers(next(second)) for _ in range(15)] == expected
