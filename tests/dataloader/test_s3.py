"""Reading from S3, over HTTP, with the network failing in between."""

from __future__ import annotations

import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mds_data import ASSETS, job, numbers, wait_until
from mosaic_photon.dataloader.shards.index import DataError
from s3_proxy import Proxy, always, broken_off, first, status


@pytest.mark.parametrize("remote", ["s3://data", "s3://packed/packed"])
def test_an_epoch_from_s3_equals_the_local_one(bucket: str, mds: Path, tmp_path: Path, build: Any, remote: str) -> None:
    ours = iter(build(job({"remote": remote, "local": str(tmp_path), "shuffle": True, "validate_hash": "xxh64"})))
    local = iter(build(job({"local": str(mds), "shuffle": True})))
    assert [numbers(next(ours)) for _ in range(120)] == [numbers(next(local)) for _ in range(120)]


def test_failures_that_pass_are_retried_with_back_off(
    bucket: str, proxy: Proxy, tmp_path: Path, build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.fault = first(2, status(409))
    loader = build(job({"remote": bucket, "local": str(tmp_path), "download_retry": 2}))
    begin = time.monotonic()
    read = [numbers(batch) for batch, _ in zip(loader, range(100), strict=False)]
    assert read[0] == [0, 1] and time.monotonic() - begin > 1
    assert "attempt 1 of 3 failed, again in" in caplog.text


def test_an_answer_that_breaks_off_is_not_taken_for_a_shard(
    bucket: str, proxy: Proxy, mds: Path, tmp_path: Path, build: Any
) -> None:
    proxy.fault = first(3, broken_off)  # boto3 itself tries again
    loader = build(job({"remote": bucket, "local": str(tmp_path)}))
    assert numbers(next(iter(loader))) == [0, 1]
    assert (tmp_path / "shard.00000.mds").read_bytes() == (mds / "shard.00000.mds").read_bytes()


def test_a_failure_that_lasts_is_an_error_that_names_shard_and_reason(
    bucket: str, proxy: Proxy, tmp_path: Path, build: Any
) -> None:
    proxy.fault = always(status(409))
    loader = build(job({"remote": bucket, "local": str(tmp_path), "download_retry": 1}))
    with pytest.raises(DataError, match=r"s3://data/shard\.\d+\.mds: .*failed after 2 attempt\(s\): ClientError.*409"):
        next(iter(loader))
    loader.close()
    wait_until(lambda: not list(tmp_path.glob("shard*")))  # the other threads are still trying


def test_what_is_not_there_is_not_retried(bucket: str, tmp_path: Path, build: Any) -> None:
    with pytest.raises(DataError, match=r"s3://data/no/index\.json: .*failed after 1 attempt.*not found"):
        build(job({"remote": f"{bucket}/no", "local": str(tmp_path), "download_retry": 9}))


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


def test_init_reads_shards_where_they_are(
    s3: Any, prepared_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both splits are found, and what there is not is said at once."""
    from mosaic_photon.cli import main

    remote = s3.upload(prepared_data, "first-job")
    assert main(["init", str(tmp_path / "run"), "--mds", remote, "--tokenizer", str(ASSETS)]) == 0
    data = tomllib.loads((tmp_path / "run" / "data.toml").read_text())
    for loader, split in (("mosaic_dataloader", "train"), ("mosaic_eval_dataloader", "val")):
        dataset = data[loader]["dataset"]
        assert dataset["remote"] == remote and dataset["split"] == split and "local" not in dataset
    assert "seq_len = 64\n" in (tmp_path / "run" / "job.toml").read_text()
    assert main(["init", str(tmp_path / "other"), "--mds", f"{remote}/none"]) == 1
    assert "no shards there" in capfd.readouterr().err and not (tmp_path / "other").exists()
