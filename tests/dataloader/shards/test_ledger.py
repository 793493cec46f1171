"""What the ledger says is so at every moment, and where it is wrong, nothing that is not ours goes."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from streaming.base.storage import CloudDownloader

from mosaic_photon.dataloader.node.settings import Settings, in_force
from mosaic_photon.dataloader.shards import ledger as ledger_module
from mosaic_photon.dataloader.shards import room as room_module
from mosaic_photon.dataloader.shards.cache import ShardCache
from mosaic_photon.dataloader.shards.cache_folder import open_source
from mosaic_photon.dataloader.shards.claim import read_claim
from mosaic_photon.dataloader.shards.fetch import Source
from mosaic_photon.dataloader.shards.index import DataError
from mosaic_photon.dataloader.shards.ledger import KEPT, LEDGER, Ledger
from mosaic_photon.dataloader.shards.table import Index

THEIRS = [0, 1, 2]
"""Shards that another program has fetched."""


@pytest.fixture
def filled(mds: Path, tmp_path: Path) -> tuple[Source, Index]:
    """A cache in a folder that another program has begun to fill."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("index.json", *(f"shard.{number:05}.mds" for number in THEIRS)):
        shutil.copy(mds / name, cache)
    return open_source(Source("data", cache, str(mds), downloader=CloudDownloader.get(str(mds))))


def open_ledger(source: Source, index: Index) -> Ledger:
    claim = read_claim(source.folder)
    assert claim is not None
    return Ledger(source.folder, claim, index)


def read_all(cache: ShardCache) -> None:
    for shard_id in range(len(cache.shards)):
        cache.ensure(shard_id)


def inodes(source: Source) -> list[int]:
    """Of the files that the other program fetched."""
    return [(source.folder / f"shard.{number:05}.mds").stat().st_ino for number in THEIRS]


def killed_at(line: int, work: Callable[[], Any]) -> bool:
    """Runs `work` in a process that dies before the `line`th of the ledger's lines that it reaches.

    False if it reached fewer.
    """
    reached = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != ledger_module.__file__:
            return None
        reached.add(frame.f_lineno)
        if len(reached) == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def run() -> None:
        sys.settrace(trace)
        work()

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


@pytest.mark.parametrize("before", ["as it is", "blank", "absent"])
def test_a_job_killed_at_any_line_leaves_a_ledger_by_which_nothing_that_is_not_ours_goes(
    filled: tuple[Source, Index], before: str
) -> None:
    """Other jobs, running ones too, evict by what it left."""
    source, index = filled
    running = ShardCache([source], [index], 8 * max(shard.raw.bytes for shard in index))
    theirs = inodes(source)
    read_all(running)
    ledger = open_ledger(source, index)
    for line in itertools.count(1):
        if before == "blank":
            ledger.table[:] = 0
        if before == "absent":
            next(source.folder.glob(f"{LEDGER}*")).unlink()
        died = killed_at(line, lambda: open_ledger(source, index).survey())
        if before == "absent":
            ledger = open_ledger(source, index)
        evictable = {row for _, row in room_module._oldest_first([ledger], [ledger.read()])}
        assert evictable.isdisjoint(THEIRS), f"killed at the {line}th line"
        if not died:
            break
    assert line > 30 and evictable and np.flatnonzero(ledger.table[KEPT]).tolist() == THEIRS
    read_all(running)
    assert inodes(source) == theirs


def test_what_is_not_ours_stays_whatever_the_ledger_says(filled: tuple[Source, Index]) -> None:
    source, index = filled
    cache = ShardCache([source], [index], 8 * max(shard.raw.bytes for shard in index))
    before = inodes(source)
    open_ledger(source, index).table[KEPT] = 0
    read_all(cache)
    assert len(list(source.folder.glob("shard.*.mds"))) <= 8  # others went
    assert inodes(source) == before


def test_a_ledger_that_was_cut_is_named(filled: tuple[Source, Index]) -> None:
    """As a power cut may leave it."""
    source, index = filled
    open_ledger(source, index)
    (ledger,) = source.folder.glob(f"{LEDGER}*")
    os.truncate(ledger, 0)
    with pytest.raises(DataError, match=rf"start this one again\. If .*{ledger.name} there is damaged: remove it"):
        ShardCache([source], [index])
    ledger.unlink()
    assert np.flatnonzero(open_ledger(source, index).table[KEPT]).tolist() == THEIRS


@pytest.mark.parametrize("node, remedy", [("node", "move local to"), ("", "set mosaic.node_folder to a folder on")])
def test_a_file_system_that_maps_no_file_to_be_written_is_refused(
    filled: tuple[Source, Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str, remedy: str
) -> None:
    def memmap(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    source, index = filled
    monkeypatch.setattr(np, "memmap", memmap)
    with in_force(Settings(str(tmp_path / node))), pytest.raises(DataError) as error:
        ShardCache([source], [index])
    assert f"{source.folder}: cannot use as cache of stream 'data'" in str(error.value)
    assert str(error.value).endswith(f"{remedy} a disk of the node's own")
