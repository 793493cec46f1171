"""Saving, resuming on another number of ranks, counting tokens, and refusing a changed order of samples."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streaming.base.world import World

from mds_data import SEQ_LEN, flat, job, numbers, streamings_work, write_mds
from mosaic_photon.dataloader.loader import STATE_KEY, DataSpecDataLoader
from mosaic_photon.dataloader.order.deal import seats
from mosaic_photon.dataloader.shards.ahead import ReadAhead
from mosaic_photon.errors import ConfigError

BATCH = 12


class Ranks:
    """All data-parallel ranks of a job, in one process."""

    def __init__(self, build: Any, dataset: dict[str, Any], dp: int, local: int) -> None:
        self.loaders: list[DataSpecDataLoader] = [
            build(job(dataset, local=local, batch=BATCH), dp, r) for r in range(dp)
        ]
        self.accumulation = BATCH // (dp * local)

    def steps(self, count: int, state: dict[str, str] | None = None) -> list[list[int]]:
        """The samples of each of `count` optimizer steps, sorted."""
        for loader in self.loaders:
            if state:
                loader.load_state_dict(state)
        batches = [iter(loader) for loader in self.loaders]
        return [sorted(flat(self._micro(b) for b in batches)) for _ in range(count)]

    def _micro(self, batches: Iterator[Any]) -> list[int]:
        return flat(numbers(next(batches)) for _ in range(self.accumulation))

    def state(self) -> dict[str, str]:
        states = [loader.state_dict() for loader in self.loaders]
        assert all(state == states[0] for state in states), "state differs between ranks"
        return states[0]

    def close(self) -> None:
        for loader in self.loaders:
            loader.close()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from([(1, 1), (1, 4), (2, 3), (3, 2), (4, 1), (6, 2)]), st.integers(1, 20)),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from([{}, {"shuffle": True}, {"shuffle": True, "shuffle_algo": "py1s"}, {"num_canonical_nodes": 3}]),
)
def test_steps_see_the_same_samples_however_the_ranks_change(
    mds: Path, build: Any, phases: list[tuple[tuple[int, int], int]], options: dict[str, Any]
) -> None:
    dataset = {"local": str(mds), **options}
    total = sum(count for _, count in phases)
    whole = Ranks(build, dataset, dp=1, local=BATCH)
    expected = whole.steps(total)
    seen: list[list[int]] = []
    state = None
    for (dp, local), count in phases:
        ranks = Ranks(build, dataset, dp, local)
        seen += ranks.steps(count, state)
        state = ranks.state()
        ranks.close()
    assert seen == expected
    assert json.loads(state[STATE_KEY]) == json.loads(whole.state()[STATE_KEY])
    whole.close()


def test_an_epoch_holds_each_sample_once_but_for_the_tail_and_the_next_is_shuffled_anew(mds: Path, build: Any) -> None:
    ranks = Ranks(build, {"local": str(mds), "shuffle": True}, dp=2, local=3)
    first, second = (flat(ranks.steps(203 // BATCH, ranks.state())) for _ in range(2))
    assert len(first) == len(set(first)) == 203 // BATCH * BATCH
    assert first != second and len(set(second)) == len(first)
    assert ranks.loaders[0].progress.epoch == 2 and ranks.loaders[0].progress.samples_in_epoch == 0


def test_each_of_40_000_samples_is_seen_once_in_one_epoch_and_twice_in_two(tmp_path: Path, build: Any) -> None:
    """On 1, 2 and 4 ranks, the latter on two nodes, which change in the middle of the first epoch and at its end."""
    data = {"local": str(write_mds(tmp_path, 40_000, shard_samples=500)), "shuffle": True, "num_canonical_nodes": 4}
    counts, state = np.zeros(40_000, int), None
    for ranks, steps, expected in ((1, 300, 0), (2, 700, 0), (4, 250, 1), (2, 100, 1), (4, 900, 1), (1, 250, 2)):
        loaders = [build(job(data, local=8, batch=32), ranks, rank) for rank in range(ranks)]
        for loader in loaders:
            loader.layout = dataclasses.replace(loader.layout, seats=seats([rank // 2 for rank in range(ranks)]))
            if state is not None:
                loader.load_state_dict(state)
            for _, batch in zip(range(steps * 4 // ranks), loader, strict=False):
                np.add.at(counts, numbers(batch), 1)
        state = loaders[0].state_dict()
        assert all(loader.state_dict() == state for loader in loaders)
        assert counts.min() == expected
        assert counts.max() == expected if steps == 250 else counts.max() <= expected + 1
        for loader in loaders:
            loader.close()


def test_what_is_read_ahead_does_not_count_and_a_new_iteration_goes_on(mds: Path, build: Any) -> None:
    loader = build(job({"local": str(mds)}, local=2, batch=2))
    batches = iter(loader)
    assert [numbers(next(batches)) for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert loader.progress.samples_in_epoch == 6
    assert numbers(next(iter(loader))) == [6, 7]


@pytest.mark.parametrize("local", [1, 4])
def test_a_micro_batch_is_of_one_stream_as_streaming_makes_it(
    mds: Path, tmp_path: Path, build: Any, local: int
) -> None:
    other = write_mds(tmp_path / "other", 60, start=300)
    streams = {"a": {"local": str(mds)}, "b": {"local": str(other)}}
    loader = build(job({"streams": streams, "batching_method": "device_per_stream"}, local=local, batch=8))
    batches = iter(loader)
    ours = [numbers(next(batches)) for _ in range(200 // local)]
    theirs = streamings_work(loader.data.dataset, local, World(1, 1, 1, 0))[0, 0, 0, : len(ours)]
    assert ours == [[i if i < 203 else 300 + i - 203 for i in batch] for batch in theirs.tolist()]


def test_what_was_begun_before_ends_instead_of_waiting(mds: Path, build: Any) -> None:
    """After another iteration, a roll-back and a close; each leaves batches that were read ahead."""
    loader = build(job({"local": str(mds)}, local=2, batch=2))
    state = loader.state_dict()
    for end in (lambda: next(iter(loader)), lambda: loader.load_state_dict(state), loader.close):
        begun = iter(loader)
        next(begun)
        end()
        position = loader.progress
        assert list(begun) == [] and loader.progress == position


def test_one_who_waits_for_a_batch_is_told_of_the_end() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        asked.set()
        go_on.wait()
        yield 1

    ahead = ReadAhead(source(), 1)
    got: list[list[int]] = []
    waiting = threading.Thread(target=lambda: got.append(list(ahead)), daemon=True)
    waiting.start()
    asked.wait()
    closing = threading.Thread(target=ahead.close)
    closing.start()
    waiting.join(timeout=60)
    go_on.set()
    closing.join()
    assert got == [[]]


def test_rolling_back_in_the_same_process(mds: Path, build: Any) -> None:
    ranks = Ranks(build, {"local": str(mds), "shuffle": True}, dp=1, local=3)
    ranks.steps(2)
    state = ranks.state()
    first = ranks.steps(5)
    assert ranks.steps(5, state) == first


def test_tokens_are_counted_over_all_ranks_and_stay_right_when_their_number_changes(mds: Path, build: Any) -> None:
    ranks = Ranks(build, {"local": str(mds)}, dp=2, local=3)
    ranks.steps(4)
    for loader in ranks.loaders:
        loader.add_loss_tokens(700)
    other = Ranks(build, {"local": str(mds)}, dp=3, local=4)
    other.steps(1, ranks.state())
    progress = other.loaders[2].progress
    assert (progress.samples, progress.tokens, progress.loss_tokens) == (5 * BATCH, 5 * BATCH * SEQ_LEN, 700)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"shuffle_seed": 7}, "shuffle_seed: 9176 -> 7"),
        ({"shuffle": False}, "shuffle: True -> False"),
        ({"num_canonical_nodes": 2}, "num_canonical_nodes: 1 -> 2"),
        ({"epoch_size": 100}, "epoch_size: 203 -> 100"),
        ({"local": "other"}, "content: "),
    ],
)
def test_a_changed_order_of_samples_stops_the_resume(
    mds: Path, tmp_path: Path, build: Any, change: dict[str, Any], name: str
) -> None:
    dataset = {"local": str(mds), "shuffle": True}
    loader = build(job(dataset))
    next(iter(loader))
    if "local" in change:
        change = {"local": str(write_mds(tmp_path / "other", 203, start=1))}
    changed = build(job(dataset | change))
    with pytest.raises(ConfigError, match="allow_data_change") as caught:
        changed.load_state_dict(loader.state_dict())
    assert name in str(caught.value)
    knowingly = build(job(dataset | change, allow_data_change=True))
    knowingly.load_state_dict(loader.state_dict())
    assert knowingly.progress.samples == 2 and next(iter(knowingly))


def test_a_position_past_the_end_of_a_smaller_epoch_goes_to_the_next(mds: Path, build: Any) -> None:
    loader = build(job({"local": str(mds)}, local=8, batch=8))
    for _ in zip(range(20), loader, strict=False):
        pass
    smaller = build(job({"local": str(mds), "epoch_size": 64}, local=8, batch=8, allow_data_change=True))
    smaller.load_state_dict(loader.state_dict())
    next(iter(smaller))
    assert (smaller.progress.epoch, smaller.progress.samples_in_epoch, smaller.progress.samples) == (1, 8, 168)


def test_moved_data_and_another_micro_batch_are_no_change(mds: Path, tmp_path: Path, build: Any) -> None:
    loader = build(job({"local": str(mds), "shuffle": True}, local=2))
    (tmp_path / "moved").symlink_to(mds)
    moved = build(job({"streams": {"data": {"local": str(tmp_path / "moved")}}, "shuffle": True}, local=4))
    moved.load_state_dict(loader.state_dict())


def checkpointed(folder: Path, state: dict[str, str], *args: Any, **kwargs: Any) -> Any:
    """A job config whose job goes on from a checkpoint of this data state."""
    config = job(*args, **kwargs)
    config.job.dump_folder, config.checkpoint.enable = str(folder), True
    path = folder / config.checkpoint.folder / "step-1"
    if not path.exists():
        dcp.save({f"dataloader.{STATE_KEY}": state[STATE_KEY]}, checkpoint_id=path, no_dist=True)
    return config


def as_version_1(state: dict[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """As releases before version 2 wrote it: no counts of shards, and the streams' names in the keys."""
    old = json.loads(state[STATE_KEY])
    named = {
        re.sub(r"streams\.(\d)", lambda m: f"{m[0]}.{names[int(m[1])]}", k): v for k, v in old["fingerprint"].items()
    }
    marks = {key: value for key, value in named.items() if not key.endswith(".shards")}
    return {STATE_KEY: json.dumps(old | {"version": 1, "fingerprint": marks})}


@pytest.mark.parametrize("version", [1, 2])
def test_streams_are_known_by_their_content_and_not_by_their_names(
    mds: Path, tmp_path: Path, build: Any, version: int
) -> None:
    other = str(write_mds(tmp_path / "other", 60, start=300))

    def streams(first: str, second: str) -> dict[str, Any]:
        return {"streams": {first: {"local": str(mds)}, second: {"local": other}}, "shuffle": True}

    loader = build(job(streams("web.choose", "books.v1")))
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    due = numbers(next(batches))
    if version == 1:
        state = as_version_1(state, ("web.choose", "books.v1"))
    renamed = build(job(streams("a", "b")))
    renamed.load_state_dict(state)
    assert numbers(next(iter(renamed))) == due
    assert json.loads(renamed.state_dict()[STATE_KEY])["version"] == 2
    with pytest.raises(ConfigError, match=r"streams\.0\.content"):
        build(
            job(streams("web.choose", "books.v1") | {"streams": {"b": {"local": other}, "a": {"local": str(mds)}}})
        ).load_state_dict(state)


@pytest.mark.parametrize("version", [1, 2])
def test_appended_data_is_left_out_or_taken_in_and_a_rewritten_index_refused(
    tmp_path: Path, build: Any, caplog: pytest.LogCaptureFixture, version: int
) -> None:
    short, long, other = (
        write_mds(tmp_path / name, count, start=start)
        for name, count, start in (("s", 108, 0), ("l", 180, 0), ("o", 180, 7))
    )
    options = {"shuffle": True, "shuffle_seed": 4}
    loader = build(job({"local": str(short), **options}))
    due = [numbers(batch) for batch, _ in zip(loader, range(52), strict=False)]
    state = build(job({"local": str(short), **options})).state_dict()
    if version == 1:
        state = as_version_1(state, ("data",))

    appended = checkpointed(tmp_path / "run", state, {"local": str(long), **options})
    goes_on = build(appended)
    assert "4 shards have been appended" in caplog.text and "allow_data_change" in caplog.text
    goes_on.load_state_dict(state)
    assert [numbers(batch) for batch, _ in zip(goes_on, range(52), strict=False)] == due

    appended.mosaic.allow_data_change = True
    takes_in = build(appended)
    takes_in.load_state_dict(state)
    if version == 2:
        assert "streams.0.shards: 6 -> 10" in caplog.text
    assert "streams.0.choose: 108 -> 180" in caplog.text
    assert (
        len(set(flat(numbers(batch) for batch, _ in zip(takes_in, range(88), strict=False)))) == 176
    )  # 22 whole batches of 8

    with pytest.raises(ConfigError, match=r"streams\.0\.content"):  # before a model is built
        build(checkpointed(tmp_path / "run", state, {"local": str(other), **options}))


def test_a_job_that_leaves_out_appended_shards_shares_its_cache_with_one_that_reads_them(
    tmp_path: Path, build: Any
) -> None:
    """Both under a limit that makes them evict each other's."""
    long, cache = write_mds(tmp_path / "long", 180), str(tmp_path / "cache")
    state = build(job({"local": str(write_mds(tmp_path / "short", 108)), "shuffle": True})).state_dict()
    limit = 4 * max(path.stat().st_size for path in long.glob("shard.*.mds"))
    data = {"remote": str(long), "local": cache, "shuffle": True, "cache_limit": limit}
    for _ in range(2):
        whole = build(job(data))
        part = build(checkpointed(tmp_path / "run", state, data))
        assert (len(whole.data.dataset.shards), len(part.data.dataset.shards)) == (10, 6)
        for loader, samples in ((part, 104), (whole, 176), (part, 104)):
            batches = [numbers(batch) for _, batch in zip(range(samples // 2), loader, strict=False)]
            assert len(set(flat(batches))) == samples
        for loader in (whole, part):
            loader.close()
    assert sum(path.stat().st_size for path in Path(cache).glob("shard.*.mds")) <= limit


def test_data_of_fewer_shards_than_the_checkpoint_knew_is_refused(tmp_path: Path, build: Any) -> None:
    long, short = write_mds(tmp_path / "long", 180), write_mds(tmp_path / "short", 108)
    state = build(job({"local": str(long)})).state_dict()
    with pytest.raises(ConfigError, match=r"streams\.0\.shards: 10 -> 6"):
        build(checkpointed(tmp_path / "run", state, {"local": str(short)}))


def test_many_shards_make_64_canonical_nodes_but_a_checkpoint_of_before_keeps_its_number(
    tmp_path: Path, build: Any
) -> None:
    data = {"local": str(write_mds(tmp_path / "data", 1600, shard_samples=1)), "shuffle": True}
    before = build(job(data | {"num_canonical_nodes": 1}))
    due = [numbers(batch) for batch, _ in zip(before, range(8), strict=False)]
    state = as_version_1(build(job(data | {"num_canonical_nodes": 1})).state_dict(), ("data",))

    assert build(job(data | {"shuffle": False})).data.dataset.num_canonical_nodes == 1
    fresh = build(job(data))
    assert fresh.data.dataset.num_canonical_nodes == 64
    assert json.loads(fresh.state_dict()[STATE_KEY])["fingerprint"]["num_canonical_nodes"] == 64

    goes_on = build(checkpointed(tmp_path / "run", state, data))
    goes_on.load_state_dict(state)
    assert goes_on.data.dataset.num_canonical_nodes == 1
    assert [numbers(batch) for batch, _ in zip(goes_on, range(8), strict=False)] == due
    with pytest.raises(ConfigError, match="num_canonical_nodes: 1 -> 2"):
        build(checkpointed(tmp_path / "run", state, data | {"num_canonical_nodes": 2}))


def test_another_number_of_ranks_without_a_global_batch_size_names_the_way_out(mds: Path, build: Any) -> None:
    loader = build(job({"local": str(mds)}, local=2, batch=-1), dp=2)
    with pytest.raises(ConfigError, match=r"global_batch_size: 4 -> 2\n.*\(set training\.global_batch_size = 4\)"):
        build(job({"local": str(mds)}, local=2, batch=-1)).load_state_dict(loader.state_dict())


def test_a_checkpoint_of_another_loader_is_refused(mds: Path, build: Any) -> None:
    with pytest.raises(ConfigError, match="another data loader"):
        build(job({"local": str(mds)})).load_state_dict({"dp_rank_0": b"", "world_size": 1})
