"""Batches of the plan that are passed over: what is read in their place, fetched, counted, and kept in a state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mds_data import SEQ_LEN, flat, job, numbers, write_mds
from mosaic_photon.dataloader.loader import STATE_KEY, DataSpecDataLoader
from mosaic_photon.dataloader.order.skips import Skips
from mosaic_photon.errors import ConfigError

BATCH = 12
PER_EPOCH = 203 // BATCH


def open_ranks(build: Any, data: Any, dp: int, local: int, skips: list[str], state: Any = None) -> list[Any]:
    """The loaders of all ranks, as a job opens them that goes on from a state."""
    config = job(dict(data), local=local, batch=BATCH, skip_batches=skips)
    loaders = [build(config, dp, rank) for rank in range(dp)]
    for loader in loaders:
        loader.load_state_dict(state or {})
    return loaders


def steps(loaders: list[DataSpecDataLoader], count: int) -> list[list[int]]:
    """The samples of each of so many steps, sorted."""
    reading = [iter(loader) for loader in loaders]
    micro_batches = BATCH // sum(loader.layout.local_batch for loader in loaders)
    return [sorted(flat(numbers(next(one)) for one in reading for _ in range(micro_batches))) for _ in range(count)]


def close(loaders: list[DataSpecDataLoader]) -> None:
    for loader in loaders:
        loader.close()


@pytest.fixture
def plan(mds: Path, build: Any) -> list[list[int]]:
    loaders = open_ranks(build, {"local": str(mds), "shuffle": True}, 1, BATCH, [])
    whole = steps(loaders, 4 * PER_EPOCH)
    close(loaders)
    return whole


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranges=st.lists(st.tuples(st.integers(0, 2 * PER_EPOCH), st.integers(1, 20)), min_size=1, max_size=3),
    phases=st.lists(
        st.tuples(st.sampled_from([(1, 1), (1, 4), (2, 3), (3, 2), (4, 1)]), st.integers(1, 8)), min_size=2, max_size=3
    ),
)
def test_steps_take_what_is_left_of_the_plan_however_the_ranks_change(
    mds: Path,
    build: Any,
    plan: list[list[int]],
    ranges: list[tuple[int, int]],
    phases: list[tuple[tuple[int, int], int]],
) -> None:
    skips = Skips.of((begin, begin + count) for begin, count in ranges)
    seen: list[list[int]] = []
    state = None
    for (dp, local), count in phases:
        loaders = open_ranks(build, {"local": str(mds), "shuffle": True}, dp, local, skips.texts, state)
        seen += steps(loaders, count)
        state = loaders[0].state_dict()
        assert all(loader.state_dict() == state for loader in loaders)
        close(loaders)
    assert seen == [plan[skips.batch_of(step)] for step in range(len(seen))]
    saved = json.loads(state[STATE_KEY])
    position = skips.batch_of(len(seen))
    assert saved["batch"] == position and Skips.of(map(tuple, saved["skipped"])) == skips.before(position)
    assert (saved["epoch"], saved["samples_in_epoch"]) == (position // PER_EPOCH, position % PER_EPOCH * BATCH)
    assert saved["samples"] == len(seen) * BATCH and saved["tokens"] == len(seen) * BATCH * SEQ_LEN


def test_no_shard_of_a_batch_that_is_passed_over_is_fetched(tmp_path: Path, build: Any) -> None:
    """In small shards, in order."""
    write_mds(tmp_path / "remote", 20 * BATCH, shard_samples=4)
    local = tmp_path / "local"
    data = {"remote": str(tmp_path / "remote"), "local": str(local), "shuffle": False, "predownload": 6 * BATCH}
    loaders = open_ranks(build, data, 1, 4, ["3-7", "10"])
    assert [one[0] // BATCH for one in steps(loaders, 8)] == [0, 1, 7, 8, 10, 11, 12, 13]
    close(loaders)
    shard_of, _ = loaders[0].data.dataset.locate(np.arange(14 * BATCH).reshape(14, BATCH))
    passed_over = [2, 3, 4, 5, 6, 9]
    needed = set(np.delete(shard_of, passed_over, axis=0).flat)
    here = {int(path.name.split(".")[1]) for path in local.rglob("shard.*.mds")}
    assert needed <= here
    assert len(set(shard_of[passed_over].flat) - needed) > 6 and not here & (set(shard_of[passed_over].flat) - needed)


def test_what_is_ahead_of_a_checkpoint_may_change_and_what_lies_behind_stays(
    mds: Path, build: Any, plan: list[list[int]]
) -> None:
    data = {"local": str(mds), "shuffle": True}
    loaders = open_ranks(build, data, 2, 3, ["3-4", "9"])
    steps(loaders, 4)  # 1, 2, 5, 6
    state = loaders[0].state_dict()
    close(loaders)
    for asked, taken in (([], [6, 7, 8]), (["3-4", "7-8"], [8, 9, 10]), (["8"], [6, 8, 9])):
        loaders = open_ranks(build, data, 1, 4, asked, state)
        assert steps(loaders, 3) == [plan[batch] for batch in taken]
        assert Skips(loaders[0].progress.skipped).before(4) == Skips.parse(["3-4"])
        close(loaders)
    with pytest.raises(
        ConfigError, match=r"batches 2, 6 of the plan have been trained on .* next one is 7\. .* most 1"
    ):
        open_ranks(build, data, 1, 4, ["2-3", "6-7"], state)
