"""The order of a large epoch is made once a node, found again, and made for the next epoch while this one runs."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataloader.order.test_epoch import one_stream
from mds_data import flat, job, numbers, wait_until, write_mds
from mosaic_photon.dataloader.loader import BATCHES_AHEAD
from mosaic_photon.dataloader.node import files as node_files
from mosaic_photon.dataloader.order import orders
from mosaic_photon.dataloader.order.epoch import EpochOrder
from mosaic_photon.dataloader.order.orders import Orders
from mosaic_photon.errors import ConfigError

SHARDS = np.full(500, 40)


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "SMALL", 0)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs whose order this process has made."""
    epochs: list[int] = []
    fill = EpochOrder.fill
    monkeypatch.setattr(EpochOrder, "fill", lambda self, epoch, out: (epochs.append(epoch), fill(self, epoch, out)))
    return epochs


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "orders").iterdir() if path.is_file())


def test_the_ranks_of_a_node_share_one_file_and_a_later_start_finds_it(tmp_path: Path, made: list[int]) -> None:
    order = one_stream(SHARDS)
    ranks = [Orders(order, lambda: tmp_path) for _ in range(3)]
    for rank in ranks:
        assert np.array_equal(rank.get(0), order.make(0))
        assert rank.get(0).dtype == np.uint16 and rank.bytes == 2 * order.length()
    assert (
        files(tmp_path) == [order.name(0)]
        and (tmp_path / "orders" / order.name(0)).stat().st_size == 2 * order.length()
    )
    assert made == [0, 0, 0, 0]  # once into the file; the others are this test's own
    Orders(one_stream(SHARDS.copy()), lambda: tmp_path).get(0)
    assert made == [0, 0, 0, 0]


def test_small_orders_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "SMALL", 1 << 20)
    order = one_stream(SHARDS)
    assert np.array_equal(Orders(order, lambda: tmp_path).get(3), order.make(3))
    assert list(tmp_path.iterdir()) == []


def start(script: str, order: EpochOrder, folder: Path, **popen: Any) -> subprocess.Popen[bytes]:
    """A process that runs `script` with `order` and `folder`."""
    given = "import pickle, sys; from pathlib import Path; from mosaic_photon.dataloader.order import orders;"
    given += "orders.SMALL = 0; order, folder = pickle.load(sys.stdin.buffer);"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", given + script], env=environment, stdin=subprocess.PIPE, **popen)
    assert process.stdin is not None
    pickle.dump((order, folder), process.stdin)
    process.stdin.flush()
    return process


def test_processes_that_start_together_make_it_once(tmp_path: Path) -> None:
    order = one_stream(SHARDS)
    script = (
        "write = orders.write;"
        "orders.write = lambda *args: ((folder / 'log').open('a').write('made\\n'), write(*args));"
        "assert (orders.Orders(order, lambda: folder).get(0) == order.make(0)).all()"
    )
    ranks = [start(script, order, tmp_path) for _ in range(3)]
    assert [rank.wait(240) for rank in ranks] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_what_nobody_holds_and_nobody_used_for_a_day_goes_at_a_start(tmp_path: Path) -> None:
    held, old, fresh = (one_stream(SHARDS, seed=seed) for seed in (1, 2, 3))
    job_that_runs = Orders(held, lambda: tmp_path)
    job_that_runs.get(0)
    for order in (old, fresh):
        Orders(order, lambda: tmp_path).get(0)
    (tmp_path / "orders" / f"{'0' * 32}.4711.part").write_bytes(b"left by a killed process")
    day_ago = time.time() - node_files.KEEP_S - 60
    theirs = ["faiss.index", "of-a-download.part"]  # a user's, whose node folder has a folder of this name
    for name in theirs:
        (tmp_path / "orders" / name).touch()
    for name in (held.name(0), old.name(0), *theirs):
        os.utime(tmp_path / "orders" / name, (day_ago, day_ago))
    Orders(fresh, lambda: tmp_path)
    assert files(tmp_path) == sorted([held.name(0), fresh.name(0), *theirs])


def test_the_orders_of_long_past_epochs_go(tmp_path: Path) -> None:
    order = one_stream(SHARDS)
    run = Orders(order, lambda: tmp_path)
    for epoch in range(4):
        run.get(epoch)
    assert files(tmp_path) == sorted([order.name(2), order.name(3)])


def test_a_full_disk_is_said_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/orders/.*No space left.*mosaic\.node_folder"):
        Orders(one_stream(SHARDS), lambda: tmp_path).get(0)


def test_a_disk_without_room_is_found_when_the_data_is_opened(
    tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job({"local": str(write_mds(tmp_path / "data", 203))}, node_folder=str(tmp_path / "node"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(ConfigError, match=r"node/orders: cannot keep.*0\.00 GB are free; free some space"):
        build(config)


def test_the_next_one_is_made_by_another_process(tmp_path: Path, made: list[int]) -> None:
    order = one_stream(SHARDS)
    run = Orders(order, lambda: tmp_path)
    run.prepare(1)
    run.prepare(1)
    wait_until((tmp_path / "orders" / order.name(1)).exists)
    assert np.array_equal(run.get(1), order.make(1)) and made == [1]  # by this test
    run.close()


def test_the_process_that_makes_it_ends_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    maker = orders.Maker.start(one_stream(SHARDS), 0, tmp_path / "order")
    assert maker.process.wait(60) == 0 and (tmp_path / "order").exists()
    assert capfd.readouterr().err == ""


def test_the_process_that_makes_it_ends_with_the_one_that_asked(tmp_path: Path) -> None:
    """Also where that one is killed: a large order takes minutes."""
    script = (
        "import time; maker = orders.Maker.start(order, 0, folder / 'order');"
        "print(maker.process.pid, flush=True); time.sleep(600)"
    )
    large = one_stream(np.full(3 * 10**6, 2))
    with start(script, large, tmp_path, stdout=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        maker = int(asking.stdout.readline())
        wait_until(lambda: list(tmp_path.glob("order.*.part")))
        asking.send_signal(signal.SIGKILL)
        wait_until(
            lambda: not Path(f"/proc/{maker}").exists() or "Z" in Path(f"/proc/{maker}/stat").read_text().split()[2]
        )


def test_a_loader_goes_from_epoch_to_epoch_through_files(tmp_path: Path, build: Any, monkeypatch: Any) -> None:
    data = write_mds(tmp_path / "data", 203)
    config = job({"local": str(data), "shuffle": True, "num_canonical_nodes": 4}, local=4, batch=8)
    config.mosaic.node_folder = str(tmp_path / "node")
    through_files = build(config)
    seen = [numbers(batch) for batch, _ in zip(through_files, range(130), strict=False)]
    names = [through_files.orders.order.name(epoch) for epoch in range(4)]
    assert set(files(tmp_path / "node")) >= {names[1], names[2]}
    wait_until(lambda: names[3] in files(tmp_path / "node"))  # 130 of 150 batches: more than half of the third epoch
    through_files.close()
    monkeypatch.setattr(orders, "SMALL", 1 << 20)
    assert seen == [numbers(batch) for batch, _ in zip(build(config), range(130), strict=False)]
    assert len(set(flat(seen[:50]))) == 200


EPOCH = 50
"""Micro-batches of an epoch of `loader_and_gate`'s."""


@pytest.fixture
def loader_and_gate(tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """A loader before its first batch; every order but the first one's is made only when the gate is there."""
    config = job({"local": str(write_mds(tmp_path / "data", 203)), "shuffle": True}, local=4, batch=8)
    config.mosaic.node_folder = str(tmp_path / "node")
    loader, gate = build(config), tmp_path / "gate"
    wait_until((tmp_path / "node" / "orders" / loader.orders.order.name(0)).exists)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(f"""
import time
from pathlib import Path
from mosaic_photon.dataloader.order.epoch import EpochOrder
fill = EpochOrder.fill
def fill_when_let(self, epoch, out):
    Path({str(tmp_path)!r}, "begun").touch()
    while not Path({str(gate)!r}).exists():
        time.sleep(0.02)
    fill(self, epoch, out)
EpochOrder.fill = fill_when_let
""")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "slow"), *sys.path]))
    return loader, gate


@pytest.fixture
def got(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The epochs whose order was asked for, and by which thread."""
    asked: list[tuple[int, str]] = []
    get = Orders.get

    def asking(self: Orders, epoch: int) -> Any:
        asked.append((epoch, threading.current_thread().name))
        return get(self, epoch)

    monkeypatch.setattr(Orders, "get", asking)
    return asked


def test_an_order_that_is_late_is_waited_for_and_not_made_again(
    loader_and_gate: tuple[Any, Path], made: list[int], got: list[tuple[int, str]], tmp_path: Path
) -> None:
    loader, gate = loader_and_gate
    batches, first = iter(loader), list[list[int]]()
    for _ in range(EPOCH - BATCHES_AHEAD):
        next(batches)
    wait_until((tmp_path / "begun").exists)
    for _ in range(BATCHES_AHEAD):
        next(batches)
    step = threading.Thread(target=lambda: first.append(numbers(next(batches))), daemon=True)
    step.start()
    wait_until(lambda: (1, "mosaic-read") in got)
    assert step.is_alive() and not first
    gate.touch()
    step.join(60)
    order = loader.orders.get(1)
    assert 1 not in made and first == [order[:4].tolist()]


def test_at_an_epochs_begin_the_step_finds_its_batch_and_computes_nothing(
    loader_and_gate: tuple[Any, Path], made: list[int], got: list[tuple[int, str]], tmp_path: Path
) -> None:
    loader, gate = loader_and_gate
    gate.touch()
    batches = iter(loader)
    for _ in range(EPOCH - BATCHES_AHEAD):
        next(batches)
    wait_until((tmp_path / "node" / "orders" / loader.orders.order.name(1)).exists)
    next(batches)
    wait_until(lambda: 1 in [epoch for epoch, _ in got])  # before any step has asked for more
    for _ in range(EPOCH):
        next(batches)
    assert made == [] and {thread for _, thread in got} == {"mosaic-read"}
