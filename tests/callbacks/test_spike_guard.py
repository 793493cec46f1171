"""What spike_guard holds back, of numbers alone; jobs with it are in tests/train/test_spikes.py."""

import json
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic_photon.callbacks import SpikeGuard
from mosaic_photon.callbacks.registry import build_callbacks
from mosaic_photon.callbacks.state_text import decode_state, encode_state
from mosaic_photon.errors import ConfigError
from mosaic_photon.train.finite import Guard

NUMBERS = st.floats(0.1, 10) | st.sampled_from([math.nan, math.inf, 100.0])


def held_back(guard: SpikeGuard, steps: list[tuple[float, float]], first: int = 1) -> list[int]:
    return [step for step, (loss, norm) in enumerate(steps, first) if guard.judge(step, step + 10, loss, norm)]


def expected(steps: list[tuple[float, float]], deviations: float, window: int) -> list[int]:
    """By the definition: against mean and deviation of the last `window` steps that were made."""
    made: list[tuple[float, float]] = []
    found = []
    for step, numbers in enumerate(steps, 1):
        columns = list(zip(*made[-window:], strict=True)) if len(made) >= window else []
        limits = [statistics.fmean(one) + deviations * statistics.pstdev(one) for one in columns] or [math.inf] * 2
        far = any(value > limit for value, limit in zip(numbers, limits, strict=True))
        if far or not all(map(math.isfinite, numbers)):
            found.append(step)
        else:
            made.append(numbers)
    return found


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=40), st.integers(0, 40), st.sampled_from([1.5, 3.0]))
def test_what_lies_far_above_the_last_made_steps_is_held_back_also_after_a_resume(
    steps: list[tuple[float, float]], cut: int, deviations: float
) -> None:
    guard, later = (SpikeGuard(deviations, window=5) for _ in range(2))
    found = held_back(guard, steps[:cut])
    later.load_state_dict(decode_state(json.loads(json.dumps(encode_state("spike_guard", guard.state_dict())))))
    assert found + held_back(later, steps[cut:], cut + 1) == expected(steps, deviations, 5)
    last = expected(steps, deviations, 5)[-4:]  # one more than max_skips
    assert [(one.step, one.batch) for one in later.held_back] == [(step, step + 10) for step in last]


def test_before_the_window_is_full_only_what_is_not_finite_counts() -> None:
    guard = SpikeGuard(window=8)
    assert held_back(guard, [(1, 1), (9, 9), (math.nan, 1), (1, math.inf), (1000, 1)]) == [3, 4]
    assert "its loss is not finite" in str(guard.judge(6, 16, -math.inf, 1))


def test_a_spike_says_how_far_it_lies_and_low_numbers_are_none() -> None:
    guard = SpikeGuard(window=4)
    assert held_back(guard, [(2, 1), (4, 1), (2, 1), (4, 1), (-90, 1)]) == []  # mean -20, deviation 40.4, for the next
    guard = SpikeGuard(window=4)
    held_back(guard, [(2, 1), (4, 3), (2, 1), (4, 3)])
    assert guard.judge(5, 15, 10, 9.5) == (
        "its loss lies 7.0 deviations above the mean of 3 and its gradient norm lies 7.5 deviations above the mean of 2"
    )


def test_one_more_than_max_skips_within_the_window_is_too_many() -> None:
    nan = (math.nan, 1.0)
    guard = SpikeGuard(window=8, max_skips=2)
    held_back(guard, [nan, *[(1.0, 1.0)] * 5, nan, (1.0, 1.0)])
    assert not guard.repeated()
    held_back(guard, [nan], 9)
    assert not guard.repeated()  # that of step 1 lies more than 8 back
    held_back(guard, [nan], 14)
    assert [one.step for one in guard.repeated()] == [7, 9, 14]
    strict = SpikeGuard(max_skips=0)
    assert held_back(strict, [nan]) == [1]
    assert strict.repeated()


def test_what_a_checkpoint_keeps_does_not_grow_with_the_run() -> None:
    guard, later = SpikeGuard(window=4, max_skips=2), SpikeGuard(window=4, max_skips=2)
    sizes = []
    for step in range(1, 1001):  # every tenth is held back
        guard.judge(step, step, math.nan if step % 10 == 0 else 1.0, 1.0)
        sizes.append(sum(len(guard.state_dict()[name]) for name in ("made", "held_back")))
    assert max(sizes) == 4 + 3
    later.load_state_dict(guard.state_dict())
    later.judge(1001, 1001, math.nan, 1.0)
    assert (later.count, [one.step for one in later.held_back]) == (101, [990, 1000, 1001])


def test_it_is_one_that_the_loop_asks() -> None:
    assert isinstance(SpikeGuard(), Guard)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"window": 1}, "window = 1: must be at least 2"),
        ({"max_skips": -1}, "max_skips = -1: must be at least 0"),
        ({"deviations": 0}, "deviations = 0: must be a number above 0"),
        ({"deviations": "6"}, "SpikeGuard.deviations = '6' should be float"),
    ],
)
def test_arguments_that_make_no_guard_are_refused(arguments: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_callbacks({"mosaic_photon.callbacks:SpikeGuard": arguments})
