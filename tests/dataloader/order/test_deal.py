"""Who gets which sample: equal to Streaming's partition, the same set per step for every number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from streaming.base.world import World

from dataloader.order.test_epoch import index_of
from mds_data import streamings_work, write_mds
from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.order.deal import (
    Layout,
    blocks_of_batches,
    blocks_of_padded_batches,
    nodes_of_ranks,
    padded_rank_batches,
    places_of_mesh,
    rank_batches,
    seats,
)
from mosaic_photon.errors import ConfigError

SHUFFLES = st.sampled_from([None, "naive", "py1br", "py1e", "py1s", "py2s"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    """Two streams of 131 and 74 samples."""
    root = tmp_path_factory.mktemp("layout")
    streams = {name: {"local": str(write_mds(root / name, size))} for name, size in (("a", 131), ("b", 74))}
    return ShardedDataset({"streams": streams})


def set_up(dataset: ShardedDataset, shuffle: str | None, nodes: int, method: str = "random") -> None:
    dataset.shuffle, dataset.shuffle_algo = shuffle is not None, shuffle or "py1e"
    dataset.num_canonical_nodes, dataset.batching_method = nodes, method


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), SHUFFLES, st.integers(1, 5), st.integers(0, 3), st.integers(0, 4))
def test_a_rank_gets_what_streaming_gives_it(
    dataset: ShardedDataset, dp: int, local: int, shuffle: str | None, nodes: int, epoch: int, start: int
) -> None:
    set_up(dataset, shuffle, nodes)
    start *= local * dp
    theirs = streamings_work(dataset, local, World(1, dp, 1, 0), epoch, start)[0, :, 0]  # (ranks, batches, local)
    order = dataset.order(local * dp).make(epoch)
    for rank in range(dp):
        ours = rank_batches(order, start, Layout(dp, rank, local, local * dp))
        assert np.array_equal(theirs[rank][: len(ours)], ours)
        assert len(theirs[rank]) - len(ours) <= 1  # the epoch's tail, where Streaming repeats samples


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["stratified", "per_stream"]), st.integers(1, 4), st.integers(2, 4), SHUFFLES, st.integers(0, 3))
def test_a_global_batch_holds_the_samples_that_streaming_gives_its_ranks(
    dataset: ShardedDataset, method: str, dp: int, local: int, shuffle: str | None, epoch: int
) -> None:
    """With any number of ranks: what Streaming promises of a batch, it promises of all ranks' together.

    But for a stream's tail, where Streaming repeats samples so that its ranks get equally many.
    """
    set_up(dataset, shuffle, 1, method)
    theirs = streamings_work(dataset, local, World(1, dp, 1, 0), epoch)[0, :, 0]  # (ranks, batches, local)
    theirs = theirs[:, theirs.min(axis=(0, 2)) >= 0].transpose(1, 0, 2).reshape(-1, dp * local)
    order = dataset.order(dp * local).make(epoch)
    ranks = [rank_batches(order, 0, Layout(dp, rank, local, dp * local)) for rank in range(dp)]
    ours, theirs = np.sort(np.concatenate(ranks, axis=1)), np.sort(theirs)
    for in_stream in (lambda batches: batches[:, 0] < 131, lambda batches: batches[:, 0] >= 131):
        of_stream = ours[in_stream(ours)]
        assert np.array_equal(of_stream, theirs[in_stream(theirs)][: len(of_stream)])
    assert len(theirs) - len(ours) <= 2
    assert len(theirs) != len(ours) or np.array_equal(ours, theirs)


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    """Two streams of 144 and 60 shards of 17 samples."""
    root = tmp_path_factory.mktemp("many")
    streams = {name: {"local": index_of(root / name, [17] * count)} for name, count in (("a", 144), ("b", 60))}
    return ShardedDataset({"streams": streams, "shuffle_block_size": 100})


def of_nodes(nodes: int, per_node: int) -> tuple[int, ...]:
    return seats([rank // per_node for rank in range(nodes * per_node)])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([(2, 1), (2, 4), (3, 2), (4, 2), (4, 3), (8, 1), (16, 2)]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 4, 6]),
    st.sampled_from([None, "py1br", "py1e", "py1s", "py2s"]),
    st.sampled_from(["random", "per_stream"]),
    st.tuples(st.integers(0, 2), st.integers(0, 3)),
)
def test_a_node_needs_no_more_shards_than_with_streaming(
    many_shards: ShardedDataset,
    world: tuple[int, int],
    multiple: int,
    local: int,
    shuffle: str | None,
    method: str,
    position: tuple[int, int],
) -> None:
    (nodes, per_node), (epoch, start), dp = world, position, world[0] * world[1]
    set_up(many_shards, shuffle, nodes * multiple, method)
    batch = dp * local
    theirs = streamings_work(many_shards, local, World(nodes, per_node, 1, 0), epoch, start * batch)
    order = many_shards.order(batch).make(epoch)
    turns = of_nodes(nodes, per_node)
    for node in range(nodes):
        layouts = [Layout(dp, node * per_node + rank, local, batch, 1, turns) for rank in range(per_node)]
        ours = [rank_batches(order, start * batch, layout) for layout in layouts]
        assert shards_of(many_shards, np.stack(ours)) <= shards_of(many_shards, theirs[node])
        if method == "random":  # rank by rank what Streaming gives, but for the epoch's tail
            assert all(np.array_equal(mine, its[0, : len(mine)]) for mine, its in zip(ours, theirs[node], strict=True))


def shards_of(dataset: ShardedDataset, ids: NDArray[np.int64]) -> set[int]:
    return set(dataset.locate(ids[ids >= 0])[0].tolist())


@pytest.mark.parametrize("method", ["random", "per_stream", "stratified"])
@pytest.mark.parametrize(("nodes", "per_node"), [(2, 8), (4, 8), (16, 2)])
def test_a_node_needs_its_part_of_the_shards(
    many_shards: ShardedDataset, method: str, nodes: int, per_node: int
) -> None:
    """Of 204 shards: one N-th, and those that lie across the border of two of its canonical nodes' neighbours."""
    set_up(many_shards, "py1s", 32, method)
    dp = nodes * per_node
    order = many_shards.order(dp * 4).make(0)
    turns = of_nodes(nodes, per_node)
    for node in range(nodes):
        ranks = range(node * per_node, (node + 1) * per_node)
        ids = np.concatenate([rank_batches(order, 0, Layout(dp, rank, 4, dp * 4, 1, turns)) for rank in ranks])
        streams = 1 if method == "random" else 2
        needed = len(shards_of(many_shards, ids))
        foreseen = set(many_shards.order(dp * 4).shards_of_nodes(0, nodes)[node].tolist())
        assert shards_of(many_shards, ids) <= foreseen
        assert method == "stratified" or needed > 0.9 * len(foreseen) - 2
        assert needed <= (204 if method == "stratified" else 204 / nodes + streams * 2 * 32 / nodes)


@pytest.mark.parametrize(
    ("nodes", "turns"),
    [
        ("aaaa", (0, 1, 2, 3)),  # one node: as Streaming deals to its ranks
        ("aabb", (0, 2, 1, 3)),
        ("abab", (0, 1, 2, 3)),
        ("abcd", (0, 1, 2, 3)),
        ("aabbbb", (0, 3, 1, 4, 2, 5)),  # the second counts as two nodes
        ("aab", (0, 1, 2)),
    ],
)
def test_neighbours_in_the_deal_sit_on_different_nodes(nodes: str, turns: tuple[int, ...]) -> None:
    assert seats(nodes) == turns


def test_nodes_that_repeat_each_other_count_once() -> None:
    """Processes of tensor parallelism, and stages of a pipeline on nodes of their own, share a data-parallel rank."""
    pipeline = nodes_of_ranks(places_of_mesh(processes=16, per_node=4, dp_world_size=8, inner=1))
    assert len(set(pipeline)) == 2 and seats(pipeline) == seats("aaaabbbb")
    tensors = nodes_of_ranks(places_of_mesh(processes=16, per_node=4, dp_world_size=8, inner=2))
    assert seats(tensors) == seats("aabbccdd")
    wide = nodes_of_ranks(places_of_mesh(processes=16, per_node=4, dp_world_size=2, inner=8))
    assert seats(wide) == (0, 1)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.integers(1, 700), st.integers(1, 40))
def test_an_order_is_dealt_in_pieces_as_in_one(dp: int, local: int, start: int, n: int, at_once: int) -> None:
    order = np.random.default_rng(0).permutation(n).astype(np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mosaic_photon.dataloader.order.deal.AT_ONCE", at_once)
        for rank in range(dp):
            layout = Layout(dp, rank, local, 2 * dp * local, 1, of_nodes(dp, 1))
            whole, pieces = rank_batches(order, start, layout), list(blocks_of_batches(order, start, layout))
            assert np.array_equal(whole, np.concatenate([whole[:0], *pieces]))
            padded = padded_rank_batches(order, layout)
            assert np.array_equal(padded, np.concatenate(list(blocks_of_padded_batches(order, layout))))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([(d, b) for d in (1, 2, 3, 4, 6, 12) for b in (1, 2, 4) if 24 % (d * b) == 0]),
    SHUFFLES,
    st.integers(1, 3),
    st.sampled_from(["random", "stratified", "per_stream", "device_per_stream"]),
    st.integers(0, 5),
    st.sampled_from([1, 2, 3]),
)
def test_every_number_of_ranks_and_nodes_gets_the_same_samples_in_a_step(
    dataset: ShardedDataset, split: tuple[int, int], shuffle: str | None, nodes: int, method: str, start: int, per: int
) -> None:
    dp, local = split
    set_up(dataset, shuffle, nodes, method)
    by_device = method == "device_per_stream"
    unit = local if by_device else 1
    order = dataset.order(local if by_device else 24).make(1)
    turns = seats([rank // per for rank in range(dp)])
    ranks = [rank_batches(order, start * 24, Layout(dp, rank, local, 24, unit, turns)) for rank in range(dp)]
    steps = np.stack(ranks).reshape(dp, -1, 24 // dp)  # (ranks, steps, samples of a rank)
    for step in range(steps.shape[1]):
        expected = order[(start + step) * 24 : (start + step + 1) * 24]
        assert sorted(steps[:, step].reshape(-1)) == sorted(expected)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 70))
def test_validation_reads_every_sample_once_with_equally_many_batches_on_all_ranks(dp: int, local: int, n: int) -> None:
    ranks = [padded_rank_batches(np.arange(n), Layout(dp, rank, local, local * dp)) for rank in range(dp)]
    assert len({batches.shape for batches in ranks}) == 1
    ids = np.concatenate([batches.reshape(-1) for batches in ranks])
    assert sorted(ids[ids >= 0]) == list(range(n))
    assert (ids < 0).sum() < local * dp


@pytest.mark.parametrize(("dp", "local", "batch"), [(1, 3, 8), (3, 2, 8), (2, 8, 8)])
def test_a_global_batch_that_does_not_divide_is_refused(dp: int, local: int, batch: int) -> None:
    said = rf"global_batch_size = {batch} does not.*multiple of local_batch_size {local} \* .* {dp}"
    with pytest.raises(ConfigError, match=said):
        Layout.of(dp, 0, local, batch)
