"""A stage's batches have whole samples of each stream, less than one from the sum of its exact shares, after each step.

Plans of many random lists of stages, in memory: passes, cuts, ranks and nodes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic_photon.dataloader.order import stages as stages_file
from mosaic_photon.dataloader.order.deal import Layout, nodes_of_ranks, places_of_mesh, seats
from mosaic_photon.dataloader.order.epoch import EpochOrder, StreamPart
from mosaic_photon.dataloader.order.orders import Orders
from mosaic_photon.dataloader.order.plan import Origin
from mosaic_photon.dataloader.order.staged import StagedPlan
from mosaic_photon.dataloader.order.stages import Numbers, Stage, numbers_of
from mosaic_photon.errors import ConfigError

WEIGHTS = st.one_of(st.integers(0, 3), st.integers(0, 1000), st.integers(0, 10**9))


@st.composite
def shares(draw: st.DrawFn, streams: int) -> tuple[Fraction, ...]:
    weights = draw(st.lists(WEIGHTS, min_size=streams, max_size=streams).filter(any))
    return tuple(Fraction(weight, sum(weights)) for weight in weights)


@st.composite
def runs(draw: st.DrawFn, longest: int = 40) -> list[Stage]:
    """Stages that follow one another; the last may go on to the end."""
    streams = draw(st.integers(1, 5))
    found: list[Stage] = []
    for _ in range(draw(st.integers(1, 4))):
        before = found[-1].shares if found and draw(st.booleans()) else None
        found.append(Stage(draw(shares(streams)), draw(st.integers(1, longest)), before))
    if draw(st.booleans()) and found[-1].before is None:
        found[-1] = Stage(found[-1].shares)
    return found


def nowhere() -> Path:
    raise AssertionError("so few are not kept in a file")


@given(runs(120), st.sampled_from([1, 2, 3, 8, 64, 1000]), st.integers(0, 10))
@settings(max_examples=150, deadline=None)
def test_every_step_is_whole_and_less_than_a_sample_from_its_shares(run: list[Stage], batch: int, more: int) -> None:
    for stage in run:
        steps = stage.batches or 50
        made = np.concatenate(list(numbers_of(stage, batch, steps)))
        assert made.shape == (steps + 1, len(stage.shares)) and not made[0].any()
        each = np.diff(made, axis=0)
        assert (each >= 0).all() and (each.sum(axis=1) == batch).all()
        exact = [Fraction(0)] * len(stage.shares)
        for step, row in enumerate(made[1:].tolist()):
            exact = [known + batch * share for known, share in zip(exact, stage.share(step), strict=True)]
            assert all(abs(number - due) < 1 for number, due in zip(row, exact, strict=True)), (step, row, exact)
        if stage.batches is None:  # what comes later has no part in what was
            assert np.array_equal(np.concatenate(list(numbers_of(stage, batch, steps + more)))[: steps + 1], made)


def test_a_ramp_that_rounded_sums_would_run_backwards() -> None:
    stage = Stage((Fraction(1, 2), Fraction(2, 5), Fraction(1, 10)), 100, (Fraction(4, 5), Fraction(1, 5), Fraction(0)))
    assert stage.share(0)[2] == Fraction(1, 10) / 200  # the value at the middle of the step
    made = np.concatenate(list(numbers_of(stage, 10, 100)))
    assert (np.diff(made, axis=0) >= 0).all() and made[-1].tolist() == [650, 300, 50]


def test_many_numbers_are_made_once_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages_file, "PIECE", 16)
    stage = Stage((Fraction(1, 3), Fraction(2, 3)))
    exact = np.concatenate(list(numbers_of(stage, 4, 128)))
    ranks = [Numbers(stage, 4, lambda: tmp_path) for _ in range(3)]
    assert all(np.array_equal(rank.between(0, 50), exact[:51]) for rank in ranks)
    kept = {path for path in (tmp_path / "orders").iterdir() if path.is_file()}
    assert len(kept) == 3  # of four pieces: the first is made by each rank
    assert np.array_equal(ranks[0].between(100, 101), exact[100:102])
    more = {path for path in (tmp_path / "orders").iterdir() if path.is_file()}
    assert len(more) == 6 and kept < more  # it goes on where the last one ended
    assert np.array_equal(Numbers(stage, 4, lambda: tmp_path).between(112, 112), exact[112:113])


@given(runs(120), st.sampled_from([1, 3, 8]), st.sampled_from([1, 7, 16]), st.data())
@settings(max_examples=60, deadline=None)
def test_numbers_go_on_where_a_piece_has_ended(run: list[Stage], batch: int, size: int, data: st.DataObject) -> None:
    for stage in run:
        steps = stage.batches or 50
        exact = np.concatenate(list(numbers_of(stage, batch, steps)))
        begin = data.draw(st.integers(0, steps))
        end = data.draw(st.integers(begin, steps))
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(stages_file, "PIECE", size)
            numbers = Numbers(stage, batch, lambda: Path(folder))
            assert np.array_equal(numbers.between(begin, end), exact[begin : end + 1])


def test_a_node_folder_that_has_no_room_for_numbers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages_file, "PIECE", 4)
    (tmp_path / "orders").touch()  # where a folder should be
    with pytest.raises(ConfigError, match=r"orders.*set mosaic\.node_folder"):
        Numbers(Stage((Fraction(1),)), 4, lambda: tmp_path).between(0, 5)


def plan_of(run: list[Stage], shards: list[list[int]], batch: int, nodes: int, origin: Origin) -> StagedPlan:
    passes, first = [], 0
    for number, sizes in enumerate(shards):
        part = StreamPart(str(number), np.array(sizes), first, sum(sizes), 1.0)
        order = EpochOrder((part,), "random", 1, nodes, True, 1, "py1e", 7, 50, once=True)
        passes.append(Orders(order, nowhere, 2))
        first += sum(sizes)
    return StagedPlan(tuple(passes), tuple(Numbers(stage, batch, nowhere) for stage in run), batch, origin)


@st.composite
def plans(draw: st.DrawFn) -> tuple[StagedPlan, int]:
    """A plan, and a batch behind its last, or any where it has none."""
    run = draw(runs())
    canonical = draw(st.sampled_from([1, 2, 4, 6, 8]))
    sizes = st.lists(st.integers(8, 20), min_size=1, max_size=6)
    shards = [draw(sizes) for _ in run[0].shares]
    origin = draw(st.sampled_from([Origin(), Origin(5, 2)]))
    plan = plan_of(run, shards, draw(st.sampled_from([8, 16, 24])), canonical, origin)
    length = sum(stage.batches or 30 for stage in run)
    return plan, origin.batch + length


def stream_of(plan: StagedPlan, stream: int, count: int) -> list[int]:
    """The first samples of a stream: pass after pass."""
    passes = -(-count // plan.orders[stream].length)
    orders = [plan.orders[stream].get(plan.origin.epoch + number) for number in range(passes)]
    return np.concatenate([np.zeros(0, np.int64), *orders])[:count].tolist()


@given(plans())
@settings(max_examples=40, deadline=None)
def test_streams_are_read_pass_after_pass_in_their_own_order(made: tuple[StagedPlan, int]) -> None:
    plan, end = made
    batches = [plan.samples(batch) for batch in range(plan.origin.batch, end)]
    counted = plan.read(plan.origin.batch, end)
    for stream in range(len(plan.orders)):
        expected, at = stream_of(plan, stream, int(counted[-1, stream])), 0
        for batch, ids in enumerate(batches):
            mine = ids[plan.stream_of(ids) == stream].tolist()
            assert sorted(mine) == sorted(expected[at : at + len(mine)])
            at += len(mine)
            assert at == counted[batch + 1, stream]
        order = plan.orders[stream].get(plan.origin.epoch)
        first = plan.orders[stream].order.streams[0].first_sample
        assert sorted(order.tolist()) == list(range(first, first + len(order)))  # each sample once a pass
    assert plan.passes(end).tolist() == (counted[-1] / plan.sizes).tolist()
    assert np.array_equal(plan.read(end, end)[0], counted[-1])


@given(plans(), st.data())
@settings(max_examples=40, deadline=None)
def test_any_cut_and_any_ranks_give_the_same_steps(made: tuple[StagedPlan, int], data: st.DataObject) -> None:
    plan, end = made
    cut = data.draw(st.integers(plan.origin.batch, end - 1))
    ranks = data.draw(st.sampled_from([1, 2, 4, 8]))
    local = data.draw(st.sampled_from([n for n in (1, 2, 3) if plan.global_batch % (n * ranks) == 0]))
    nodes = data.draw(st.sampled_from([n for n in (1, 2, 4) if ranks % n == 0]))
    turns = seats(nodes_of_ranks(places_of_mesh(ranks, ranks // nodes, ranks, 1)))
    parts = [
        np.concatenate(list(plan.blocks(cut, end, Layout(ranks, rank, local, plan.global_batch, 1, turns))))
        for rank in range(ranks)
    ]
    each = plan.global_batch // ranks // local
    for step in range(end - cut):
        ids = np.concatenate([part[step * each : (step + 1) * each].ravel() for part in parts])
        assert sorted(ids.tolist()) == sorted(plan.samples(cut + step).tolist())
    done = local * ranks
    if plan.global_batch > done:  # the rest of a step of which one micro-batch has been read
        layout = Layout(ranks, 0, local, plan.global_batch, 1, turns)
        assert np.array_equal(np.concatenate(list(plan.blocks(cut, end, layout, done))), parts[0][1:])


def places(plan: StagedPlan, end: int) -> Iterator[tuple[int, int]]:
    """The class of each place and of the sample there, from their places in the pass."""
    for batch in range(end):
        for place, sample in enumerate(plan.samples(batch).tolist()):
            stream = int(plan.stream_of(np.array([sample]))[0])
            number = int(plan.read(batch, batch)[0, stream]) // plan.orders[stream].length
            order = plan.orders[stream].get(number).tolist()
            yield place, order.index(sample)


def test_a_sample_lies_with_the_node_of_its_shards_as_far_as_shares_allow() -> None:
    thirds = [Stage((Fraction(1, 2), Fraction(3, 10), Fraction(1, 5)), 20)]
    plan = plan_of(thirds, [[50] * 16, [50] * 12, [50] * 8], 32, 4, Origin())
    away = [(place - at) % 2 for place, at in places(plan, 20)]
    assert sum(away) < 0.06 * len(away)  # of two nodes; three streams of odd numbers are a sample apart
    whole = plan_of([Stage((Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)), 20)], [[50] * 16] * 3, 32, 4, Origin())
    assert all((place - at) % 4 == 0 for place, at in places(whole, 20))
