"""Real processes: changing numbers of ranks, nodes with caches of their own, ranks and jobs that die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mds_data import job, numbers, wait_until, write_mds

SCRIPT = Path(__file__).parent / "ranks_job.py"


def start(tmp_path: Path, launches: list[dict[str, Any]], name: str = "plan", **popen: Any) -> subprocess.Popen[str]:
    plan = {"launches": launches, "out": str(tmp_path / f"{name}.out"), "checkpoint": str(tmp_path / "checkpoint")}
    (tmp_path / f"{name}.json").write_text(json.dumps(plan))
    command = [sys.executable, str(SCRIPT), str(tmp_path / f"{name}.json")]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **popen)


def results(tmp_path: Path, name: str = "plan") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / f"{name}.out").read_text().splitlines()]


def test_one_two_four_one_ranks_with_tensor_and_pipeline_parallelism(mds: Path, tmp_path: Path, build: Any) -> None:
    data = {"local": str(mds), "shuffle": True}
    common = {"data": data, "batch": 8, "local": 2}
    launches = [
        {"world": 1, "steps": 4, **common},
        {"world": 2, "steps": 9, **common},
        {"world": 4, "tp": 2, "steps": 9, **common},  # over the end of the epoch of 25 steps
        {"world": 4, "pp": 2, "steps": 7, **common},
        {"world": 4, "steps": 5, **common},
        {"world": 1, "steps": 6, **common, "local": 4},
        {"world": 4, "steps": 3, "fail": [1, 2], **common},
    ]
    process = start(tmp_path, launches)
    errors = process.communicate(timeout=250)[1]
    lines = results(tmp_path)
    assert len(lines) == len(launches), errors
    seen = [step for line in lines[:-1] for step in line["result"]]
    whole = build(job(data, local=8, batch=8))
    expected = [sorted(samples) for samples in _samples(whole, len(seen))]
    assert seen == expected
    # torch names the rank that failed, or one that lost its connection to it.
    assert "ChildFailedError" in lines[-1]["result"] and "this rank fails" in errors
    assert lines[-1]["seconds"] < 120  # the others did not wait for it


def two_nodes(tmp_path: Path, spec: dict[str, Any]) -> list[list[list[int]]]:
    """Run one launch by two agents, each a node with a cache of its own; the samples of each step, by each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    spec |= {"nodes": 2, "endpoint": endpoint, "cache": f"{tmp_path}/node{{node}}"}
    agents = [start(tmp_path, [spec | {"is_host": name == "one"}], name) for name in ("one", "two")]
    errors = [agent.communicate(timeout=240)[1] for agent in agents]
    found = [results(tmp_path, name)[0]["result"] for name in ("one", "two")]
    assert all(isinstance(result, list) for result in found), (found, errors)
    return found


def shards_of_nodes(tmp_path: Path) -> list[int]:
    return [len(list((tmp_path / f"node{node}").glob("shard.*.mds"))) for node in (0, 1)]


def test_two_nodes_have_caches_of_their_own(mds: Path, tmp_path: Path, build: Any) -> None:
    data = {"remote": str(mds), "shuffle": True}
    steps = two_nodes(tmp_path, {"world": 2, "steps": 12, "batch": 8, "local": 2, "data": data})
    whole = build(job({"local": str(mds), "shuffle": True}, local=8, batch=8))
    assert steps[0] == steps[1] == [sorted(samples) for samples in _samples(whole, 12)]
    assert min(shards_of_nodes(tmp_path)) > 5


def test_two_nodes_of_two_ranks_fetch_half_of_the_shards_each(tmp_path: Path, build: Any, s3: Any) -> None:
    """All of an epoch, from an S3 server: with two canonical nodes each node's ranks share one of them."""
    source = write_mds(tmp_path / "source", 648)
    shards, options = len(list(source.glob("shard.*.mds"))), {"shuffle": True, "num_canonical_nodes": 2}
    data = {"remote": s3.upload(source, "two-nodes"), **options}
    steps = two_nodes(tmp_path, {"world": 4, "steps": 81, "batch": 8, "local": 1, "data": data})
    whole = build(job({"local": str(source), **options}, local=8, batch=8))
    assert steps[0] == steps[1] == [sorted(samples) for samples in _samples(whole, 81)]
    assert [abs(count - shards / 2) <= 1 for count in shards_of_nodes(tmp_path)] == [True, True]


@pytest.mark.timeout(600)
def test_killed_and_neighbouring_jobs_do_not_meet(mds: Path, tmp_path: Path, build: Any) -> None:
    """Two jobs share a cache; one is killed with all its processes; the other goes on, and the next mends the rest."""
    spec = {"world": 2, "steps": 60, "batch": 8, "local": 2, "pause": 0.1, "sign": "began"}
    spec["data"] = {"remote": str(mds), "local": str(tmp_path / "cache"), "shuffle": True}
    doomed, other = (start(tmp_path / name, [spec], start_new_session=True) for name in _made(tmp_path, "a", "b"))
    wait_until((tmp_path / "a" / "began").exists, timeout=240)
    os.killpg(doomed.pid, signal.SIGKILL)
    doomed.communicate()
    other.communicate(timeout=240)
    assert len(results(tmp_path / "b")[0]["result"]) == 60
    build(job(spec["data"]))
    assert not list((tmp_path / "cache").glob(".mosaic_photon.parts/*"))


def _made(root: Path, *names: str) -> list[str]:
    for name in names:
        (root / name).mkdir()
    return list(names)


def _samples(loader: Any, steps: int) -> list[list[int]]:
    return [numbers(batch) for batch, _ in zip(loader, range(steps), strict=False)]
