"""The order of an epoch is Streaming's, bit for bit, and its length is known without it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from streaming.base.world import World

from mds_data import streamings_work
from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.order.epoch import EpochOrder, StreamPart
from mosaic_photon.errors import ConfigError

WEIGHTS = st.one_of(
    st.just({}),
    st.builds(dict, repeat=st.sampled_from([0.3, 0.7, 1.0, 1.5, 3.3])),
    st.builds(dict, choose=st.integers(1, 400)),
)
SHARDS = st.lists(st.integers(1, 60), min_size=1, max_size=12)
SETTINGS = st.fixed_dictionaries(
    {
        "shuffle": st.sampled_from([True, True, True, False]),
        "shuffle_algo": st.sampled_from(["naive", "py1br", "py1e", "py1s", "py2s"]),
        "num_canonical_nodes": st.sampled_from([1, 2, 3, 7, 16, 64]),
        "shuffle_seed": st.integers(0, 10_000),
        "shuffle_block_size": st.sampled_from([10, 100, 1000, 1 << 18]),
        "batching_method": st.sampled_from(["random", "random", "per_stream", "stratified", "device_per_stream"]),
        "sampling_method": st.sampled_from(["balanced", "fixed"]),
        "sampling_granularity": st.sampled_from([1, 3, 50]),
        "partition_algo": st.sampled_from(["orig", "relaxed"]),
    }
)


def index_of(folder: Path, shards: list[int]) -> str:
    """An index of shards of so many samples, without the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {
            "version": 2,
            "format": "mds",
            "samples": samples,
            "column_names": ["tokens"],
            "column_encodings": ["ndarray:int32:17"],
            "column_sizes": [68],
            "raw_data": {"basename": f"shard.{number:05}.mds", "bytes": 1000, "hashes": {}},
            "zip_data": None,
            "compression": None,
            "hashes": [],
        }
        for number, samples in enumerate(shards)
    ]
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))
    return str(folder)


def streaming_order(dataset: ShardedDataset, batch: int, epoch: int) -> NDArray[np.int64]:
    ids = streamings_work(dataset, batch, World(1, 1, 1, 0), epoch).reshape(-1)
    return ids[ids >= 0]


@pytest.mark.parametrize("shuffle_algo", ["py1e", "py1br", "py1s"])
def test_a_stream_that_is_left_no_samples_is_named(tmp_path: Path, shuffle_algo: str) -> None:
    streams = {
        name: {"local": index_of(tmp_path / name, [1]), "repeat": repeat} for name, repeat in (("few", 0.3), ("all", 1))
    }
    dataset = ShardedDataset({"streams": streams, "shuffle": True, "shuffle_algo": shuffle_algo,
                              "batching_method": "per_stream"})  # fmt: skip
    with pytest.raises(ConfigError, match="per_stream' takes samples of every stream, and stream 'few' is left none"):
        dataset.order(1).length()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Streaming's, of few samples and small blocks
@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(SHARDS, WEIGHTS), min_size=1, max_size=3),
    SETTINGS,
    st.sampled_from([1, 2, 4, 7, 32]),
    st.sampled_from([0, 1, 5]),
)
def test_the_order_is_streaming_s(
    tmp_path_factory: pytest.TempPathFactory,
    streams: list[tuple[list[int], dict[str, Any]]],
    config: dict[str, Any],
    batch: int,
    epoch: int,
) -> None:
    root = tmp_path_factory.mktemp("streams")
    kind = next(iter(streams[0][1]), None)  # one way of weighing in all streams
    given = {
        str(number): {"local": index_of(root / str(number), shards)} | ({kind: weight.get(kind, 1)} if kind else {})
        for number, (shards, weight) in enumerate(streams)
    }
    try:
        dataset = ShardedDataset({"streams": given, **config})
    except ConfigError:  # all of the streams' samples were weighed away
        return
    order = dataset.order(batch)
    try:
        theirs = streaming_order(dataset, batch, epoch)
    except ValueError:
        theirs = np.empty(0, np.int64)
    if not len(theirs):
        with pytest.raises(ConfigError):
            order.length()
        return
    assert order.length() == len(theirs)
    assert np.array_equal(order.make(epoch), theirs)
    assert order.make(epoch).dtype == order.dtype


def one_stream(samples: NDArray[np.int64], choose: int | None = None, **changes: Any) -> EpochOrder:
    stream = StreamPart("data", samples, 0, choose or int(samples.sum()), 1.0)
    order = EpochOrder((stream,), "random", 1024, 64, True, 1, "py1e", 9176, 1 << 18)
    return dataclasses.replace(order, **changes)


def test_ids_take_no_more_bytes_than_they_need() -> None:
    shards = np.full(1000, 60)
    assert (one_stream(shards).dtype, one_stream(shards * 2).dtype) == (np.uint16, np.uint32)
    assert one_stream(shards * 10**8).dtype == np.uint64


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"shuffle": "py1s"},
        {"shuffle": None},
        {"block": 1000},
        {"canonical_nodes": 8},
        {"batch": 512},
        {"batching_method": "per_stream"},
        {"balanced": False},
        {"granularity": 2},
        {"choose": 999},
    ],
)
def test_the_name_of_an_order_tells_all_that_it_depends_on(change: dict[str, Any]) -> None:
    shards = np.full(100, 60)
    order, other = one_stream(shards), one_stream(shards, **change)
    assert other.name(0) != order.name(0) == one_stream(shards.copy()).name(0)


def test_the_name_of_an_order_depends_on_epoch_and_shards() -> None:
    shards = np.full(100, 60)
    names = {
        one_stream(sizes).name(epoch)
        for sizes in (shards, shards[:99], shards[::-1] + (shards > 59))
        for epoch in (0, 1)
    }
    assert len(names) == 6
