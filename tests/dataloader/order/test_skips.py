"""Which batch of the plan each step takes where some are passed over, held to a list of what is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic_photon.dataloader.order.skips import Skips
from mosaic_photon.errors import ConfigError

WHOLE = 60
RANGES = st.lists(st.tuples(st.integers(0, WHOLE), st.integers(0, 9)).map(lambda one: (one[0], sum(one))), max_size=6)


def batches(ranges: list[tuple[int, int]]) -> set[int]:
    return {batch for one in ranges for batch in range(*one)}


@given(RANGES)
def test_steps_take_what_is_left_in_order(ranges: list[tuple[int, int]]) -> None:
    skips, gone = Skips.of(ranges), batches(ranges)
    left = [batch for batch in range(2 * WHOLE) if batch not in gone]
    assert [skips.batch_of(step) for step in range(len(left))] == left
    assert [skips.step_of(batch) for batch in left] == list(range(len(left)))
    assert all(skips.step_of(batch) is None for batch in gone)
    assert all(skips.next(batch) == min(b for b in left if b >= batch) for batch in range(WHOLE))
    ends = [min((b for b in gone if b > batch), default=WHOLE) for batch in left]
    assert [skips.until(batch, WHOLE) for batch in left] == [min(end, WHOLE) for end in ends]
    assert skips.count == len(gone) and Skips.parse(skips.texts) == skips


@given(RANGES, RANGES, st.integers(0, WHOLE))
def test_ranges_are_sets_of_batches(some: list[tuple[int, int]], others: list[tuple[int, int]], at: int) -> None:
    mine, theirs = Skips.of(some), Skips.of(others)
    assert batches(list((mine | theirs).ranges)) == batches(some) | batches(others)
    assert batches(list(mine.without(theirs).ranges)) == batches(some) - batches(others)
    assert batches(list(mine.before(at).ranges)) == {batch for batch in batches(some) if batch < at}


def test_what_users_write_is_counted_from_1() -> None:
    skips = Skips.parse(["1200-1210", " 1500", "1211 - 1213", "7-7"])
    assert skips.ranges == ((6, 7), (1199, 1213), (1499, 1500))
    assert str(skips) == "7, 1200-1213, 1500"
    assert skips.batch_of(1198) == 1213  # step 1199 takes batch 1214: batch 7 had gone before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1210-1200", 'ends before it begins; "1200-1210"'),
        ("0-3", "counted from 1"),
        *[(text, '"1500" or "1200-1210"') for text in ("", "x", "3-", "-3", "1.5", "1e3", "3-4-5", "3:4")],
    ],
)
def test_what_is_no_range_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Skips.parse(["3", text])


def test_what_lies_behind_a_checkpoint_is_its_own() -> None:
    skipped = Skips.parse(["3-4"])
    for fine in ([], ["20"], ["3-4", "10-12"], ["4", "10"]):
        Skips.parse(fine).check_ahead(9, skipped)
    with pytest.raises(ConfigError, match=r"batches 5, 9 of the plan .* next one is 10\. .* at most 2"):
        Skips.parse(["4-5", "9-12"]).check_ahead(9, skipped)


def test_a_range_outside_the_run_is_refused() -> None:
    Skips.parse(["8-20", "22"]).check_within(10)  # the tenth step takes batch 24
    with pytest.raises(ConfigError, match=r"'25' is outside the run, which takes batches up to 24 .*steps = 10"):
        Skips.parse(["8-20", "22", "25"]).check_within(10)
