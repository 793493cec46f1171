"""Two ranks under TorchTitan, whose remote goes away in the middle of the run."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from jobs import JOB, launch, run_here, scalars, write_job
from mds_data import wait_until
from s3_proxy import Proxy

JOB_OF_16 = JOB.replace("steps = 4", "steps = 20").replace("seq_len = 64", "seq_len = 16")
REMOTE = """
[mosaic_dataloader]
name = "text"
num_workers = 0
[mosaic_dataloader.dataset]
remote = "{data}"
local = "CACHE"
predownload = 1
download_retry = 0
"""
LOCAL = REMOTE.replace('remote = "{data}"\nlocal = "CACHE"', 'local = "{data}"')


@pytest.fixture
def goes_away(proxy: Proxy) -> Proxy:
    """For ever, unless a test calls `come_back`, once three shards have been asked for."""

    def watch() -> None:
        wait_until(lambda: proxy.shard_gets >= 3, timeout=120)
        proxy.go_away()

    threading.Thread(target=watch, daemon=True).start()
    return proxy


def test_an_outage_in_the_middle_of_a_job_loses_and_doubles_no_sample(
    bucket: str, goes_away: Proxy, mds: Path, tmp_path: Path
) -> None:
    def come_back() -> None:
        wait_until(lambda: goes_away.away, timeout=150)
        time.sleep(8)
        goes_away.come_back()

    threading.Thread(target=come_back, daemon=True).start()
    remote = REMOTE.replace("CACHE", str(tmp_path / "cache"))
    arguments = write_job(tmp_path / "ours", mds, JOB_OF_16, remote.replace("{data}", bucket))
    printed = launch(arguments, ranks=2)
    assert "no answer" in printed and "waiting for it" in printed and "answers again after" in printed
    waits = scalars(tmp_path / "ours", "time_metrics/data_loading(s)")
    assert max(waits.values()) > 1, waits  # the mean of a step's two micro-batches, and of what is left of the 8 s
    assert run_here(write_job(tmp_path / "whole", mds, JOB_OF_16, LOCAL)) == 0
    assert scalars(tmp_path / "ours") == pytest.approx(scalars(tmp_path / "whole"), rel=1e-5)


def test_an_outage_that_outlasts_the_patience_ends_the_job(bucket: str, goes_away: Proxy, tmp_path: Path) -> None:
    remote = REMOTE.replace("CACHE", str(tmp_path / "cache")).replace("{data}", bucket)
    arguments = write_job(tmp_path, Path(bucket), JOB_OF_16, remote)
    printed = launch(arguments, "--mosaic.download_patience_seconds=3", ranks=2, expect=1)
    assert "(mosaic.download_patience_seconds)" in printed and "error on rank" in printed
