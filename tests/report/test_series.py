"""What is computed of a run's series, against what it says it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic_photon.names import dotted
from mosaic_photon.report.record import Row
from mosaic_photon.report.series import Curve, curves_of, differing, shares, smoothed, thinned

VALUES = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1, max_size=300)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.integers(3, 60))
def test_fewer_points_keep_the_ends_every_extreme_and_that_something_is_not_finite(
    values: list[float], points: int
) -> None:
    all_of = np.array(values)
    rows = thinned(all_of, points)
    assert len(rows) <= points + 2 and np.all(np.diff(rows) > 0)
    assert rows[0] == 0 and rows[-1] == len(values) - 1
    kept, finite = all_of[rows], np.isfinite(all_of)
    assert np.isfinite(kept).all() == finite.all()
    if finite.any():
        assert kept[np.isfinite(kept)].min() == all_of[finite].min()
        assert kept[np.isfinite(kept)].max() == all_of[finite].max()


def test_of_a_hundred_thousand_rows_no_spike_is_lost() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    spikes = [3, 777, 50_001, 99_998]
    values[spikes] = [50, -60, 70, -80]
    assert set(spikes) <= set(thinned(values, 1000))


@pytest.mark.parametrize("rows", [1, 3, 100, 5000])
def test_a_smoothed_value_is_the_mean_of_the_finite_ones_of_the_nearest_4_percent(rows: int) -> None:
    values = np.random.default_rng(rows).normal(size=rows)
    values[rows // 2 :: 7] = np.nan
    half = rows // 50
    expected = [np.nan] * rows
    for row in range(rows):
        near = values[max(0, row - half) : row + half + 1]
        expected[row] = near[np.isfinite(near)].mean() if np.isfinite(near).any() else np.nan
    np.testing.assert_allclose(smoothed(values, np.arange(rows)), expected)


def test_a_huge_value_spoils_only_the_means_that_it_is_in() -> None:
    values = np.ones(1000)
    values[500] = 1e30
    means = smoothed(values, np.arange(1000))
    assert set(np.flatnonzero(means != 1)) == set(range(480, 521))


def test_rows_that_do_not_tell_their_tokens_have_them_from_their_neighbours() -> None:
    told = ((1, 10), (2, None), (3, 30))
    rows = [Row(attempt=1, step=step, time=0.0, tokens=tokens, metrics={"a": 1.0}) for step, tokens in told]
    assert curves_of(rows)["a"].tokens.tolist() == [10, 20, 30]
    assert np.isnan(curves_of(rows[1:2])["a"].tokens).all()


def test_metrics_are_told_apart_whichever_reports_have_them() -> None:
    told = [{"a": 1.0, "b": 2.0}, {"b": "NaN"}, {"b": 3.0, "a": "-Infinity"}, {"a": 4.0, "b": 5.0}]
    rows = [Row(attempt=1, step=step, time=0.0, metrics=metrics) for step, metrics in enumerate(told)]
    found = curves_of(rows)
    assert found["a"].steps.tolist() == [0, 2, 3] and found["a"].values.tolist() == [1.0, -np.inf, 4.0]
    np.testing.assert_array_equal(found["b"].values, [2.0, np.nan, 3.0, 5.0])
    assert found["b"].steps.tolist() == [0, 1, 2, 3] and curves_of([]) == {}


def test_shares_are_those_of_the_tokens_between_two_reports_and_make_one() -> None:
    steps = np.array([10, 20, 30])
    totals = {"a": np.array([30.0, 30.0, 90.0]), "b": np.array([10.0, 50.0, 70.0])}
    found = shares({name: Curve(steps, steps * 4.0, values) for name, values in totals.items()})
    assert found["a"].values.tolist() == [0.75, 0.0, 0.75] and found["b"].values.tolist() == [0.25, 1.0, 0.25]
    assert found["a"].tokens.tolist() == [40, 80, 160]


def test_a_stream_that_came_late_and_a_stretch_without_tokens() -> None:
    early = Curve(np.array([1, 2, 3]), np.zeros(3), np.array([5.0, 5.0, 10.0]))
    late = Curve(np.array([3]), np.zeros(1), np.array([15.0]))
    found = shares({"early": early, "late": late})
    assert found["early"].steps.tolist() == [1, 3]
    assert found["early"].values.tolist() == [1.0, 0.25] and found["late"].values.tolist() == [0.0, 0.75]


def test_configs_differ_by_key_also_where_one_has_no_such_key() -> None:
    ours, theirs = (
        dict(dotted({"a": {"b": 1, "c": "x"}, "d": [1]})),
        dict(dotted({"a": {"b": 2, "c": "x"}, "d": [1], "e": {"f": True}})),
    )
    assert differing([ours, theirs]) == {"a.b": [1, 2], "e.f": [None, True]}
    assert differing([ours]) == {}
