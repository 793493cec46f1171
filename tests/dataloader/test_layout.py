"""Who gets which sample: equal to Streaming's partition, the same set per step for every number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming.base.batching import generate_work
from streaming.base.world import World

from mds_data import write_mds
from mosaic_photon.dataloader.dataset import ShardedDataset, build_streams
from mosaic_photon.dataloader.layout import Layout, padded_rank_batches, rank_batches
from mosaic_photon.errors import ConfigError

SHUFFLES = st.sampled_from([None, "naive", "py1br", "py1e", "py1s", "py2s"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    """Two streams of 131 and 74 samples."""
    root = tmp_path_factory.mktemp("layout")
    streams = {name: {"local": str(write_mds(root / name, size))} for name, size in (("a", 131), ("b", 74))}
    return ShardedDataset(streams=build_streams(streams))


def set_up(dataset: ShardedDataset, shuffle: str | None, nodes: int, method: str = "random") -> None:
    dataset.shuffle, dataset.shuffle_algo = shuffle is not None, shuffle or "py1e"
    dataset.num_canonical_nodes, dataset.batching_method = nodes, method


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), SHUFFLES, st.integers(1, 5), st.integers(0, 3), st.integers(0, 4))
def test_a_rank_gets_what_streaming_gives_it(
    dataset: ShardedDataset, dp: int, local: int, shuffle: str | None, nodes: int, epoch: int, start: int
) -> None:
    set_up(dataset, shuffle, nodes)
    dataset.batch_size = local
    start *= local * dp
    theirs = generate_work("random", dataset, World(1, dp, 1, 0), epoch, start)[0, :, 0]  # (ranks, batches, local)
    order = dataset.epoch_order(epoch, local * dp)
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
    dataset.batch_size = local
    theirs = generate_work(method, dataset, World(1, dp, 1, 0), epoch, 0)[0, :, 0]  # (ranks, batches, local)
    theirs = theirs[:, theirs.min(axis=(0, 2)) >= 0].transpose(1, 0, 2).reshape(-1, dp * local)
    order = dataset.epoch_order(epoch, dp * local)
    ranks = [rank_batches(order, 0, Layout(dp, rank, local, dp * local)) for rank in range(dp)]
    ours, theirs = np.sort(np.concatenate(ranks, axis=1)), np.sort(theirs)
    for in_stream in (lambda batches: batches[:, 0] < 131, lambda batches: batches[:, 0] >= 131):
        of_stream = ours[in_stream(ours)]
        assert np.array_equal(of_stream, theirs[in_stream(theirs)][: len(of_stream)])
    assert len(theirs) - len(ours) <= 2
    assert len(theirs) != len(ours) or np.array_equal(ours, theirs)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([(d, b) for d in (1, 2, 3, 4, 6, 12) for b in (1, 2, 4) if 24 % (d * b) == 0]),
    SHUFFLES,
    st.integers(1, 3),
    st.sampled_from(["random", "stratified", "per_stream", "device_per_stream"]),
    st.integers(0, 5),
)
def test_every_number_of_ranks_gets_the_same_samples_in_a_step(
    dataset: ShardedDataset, split: tuple[int, int], shuffle: str | None, nodes: int, method: str, start: int
) -> None:
    dp, local = split
    set_up(dataset, shuffle, nodes, method)
    by_device = method == "device_per_stream"
    unit = local if by_device else 1
    order = dataset.epoch_order(1, local if by_device else 24)
    ranks = [rank_batches(order, start * 24, Layout(dp, rank, local, 24, unit)) for rank in range(dp)]
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
    with pytest.raises(ConfigError, match=rf"global_batch_size {batch} is no multiple.*{local}\s+x {dp}"):
        Layout.of(dp, 0, local, batch)
