"""The plan of a run without stages says what its loaders read, batch by batch, and takes up older checkpoints."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mds_data import flat, job, numbers, write_mds
from mosaic_photon.dataloader.loader import STATE_KEY
from mosaic_photon.errors import ConfigError


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """64 samples from number 0 on, and 39 from 100 on: an epoch is 12 batches of 8, and 7 samples that are not read."""
    root = tmp_path_factory.mktemp("streams")
    parts = {"a": (64, 0), "b": (39, 100)}
    folders = {name: write_mds(root / name, count, start=start) for name, (count, start) in parts.items()}
    return {"streams": {name: {"local": str(folder)} for name, folder in folders.items()}, "shuffle": True}


def read(loader: Any, batches: int) -> list[list[int]]:
    """The samples of so many global batches of 8 in micro-batches of 2."""
    micro = iter(loader)
    return [flat(numbers(next(micro)) for _ in range(4)) for _ in range(batches)]


def planned(loader: Any, batch: int) -> list[int]:
    """The same of the plan, as numbers in the order of the deal."""
    ids = loader.plan.samples(batch)
    return np.where(loader.plan.stream_of(ids) == 0, ids, ids - 64 + 100).tolist()


def test_the_plan_tells_what_each_batch_of_the_run_has(build: Any, streams: dict[str, Any]) -> None:
    loader = build(job(streams))
    seen = read(loader, 30)
    assert [planned(loader, batch) for batch in range(30)] == seen
    assert (loader.progress.batch, loader.progress.epoch, loader.progress.samples_in_epoch) == (30, 2, 48)
    assert loader.plan.passes(24).tolist() == [2, 2]


def test_any_rank_goes_on_at_a_batch_of_the_plan(build: Any, streams: dict[str, Any]) -> None:
    one = build(job(streams))
    seen = read(one, 14)
    state = one.state_dict()
    expected = read(one, 2)
    parts = []
    for rank in range(2):
        loader = build(job(streams), 2, rank)
        loader.load_state_dict(state)
        micro = iter(loader)
        parts.append([numbers(next(micro)) for _ in range(4)])
        assert planned(loader, 13) == seen[13]
    dealt = [[first + second for first, second in zip(*parts, strict=True)][2 * step :][:2] for step in range(2)]
    assert [sorted(flat(rounds)) for rounds in dealt] == [sorted(batch) for batch in expected]


def test_a_state_of_an_older_release_goes_on_at_the_same_sample(build: Any, streams: dict[str, Any]) -> None:
    loader = build(job(streams))
    read(loader, 14)
    state = json.loads(loader.state_dict()[STATE_KEY])
    older = {name: value for name, value in state.items() if name not in ("batch", "origin")}
    resumed, moved = build(job(streams)), build(job(streams))
    resumed.load_state_dict({STATE_KEY: json.dumps(older)})
    assert resumed.progress == loader.progress
    expected = read(loader, 12)
    assert read(resumed, 12) == expected
    # its data were changed before: where in the epoch it is does not follow from how much it has read
    moved.load_state_dict({STATE_KEY: json.dumps(older | {"epoch": 4, "samples_in_epoch": 43})})
    assert (moved.progress.batch, moved.plan.place(14), moved.plan.place(21)) == (14, (4, 43), (5, 0))
    assert [planned(moved, batch) for batch in range(14, 24)] == read(moved, 10)
    with pytest.raises(ConfigError, match="batch 13 was read before the data were changed, at batch 14"):
        moved.plan.samples(13)


def test_a_changed_config_has_a_plan_from_where_it_was_changed(build: Any, streams: dict[str, Any]) -> None:
    loader = build(job(streams))
    read(loader, 3)
    changed = build(job(streams | {"shuffle_seed": 77}, batch=4, allow_data_change=True))
    changed.load_state_dict(loader.state_dict())
    micro = iter(changed)
    seen = [flat(numbers(next(micro)) for _ in range(2)) for _ in range(30)]
    again = build(job(streams | {"shuffle_seed": 77}, batch=4))
    again.load_state_dict(changed.state_dict())
    assert [planned(again, batch) for batch in range(3, 33)] == seen
    assert again.progress.batch == 33
