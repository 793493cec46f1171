"""A schedule in tokens or samples goes by what was consumed, after a change of batch too."""

import pytest

from mosaic_photon.schedulers.catalog import build_multiplier
from mosaic_photon.schedulers.run_length import Position, RunLength, parse

RESUMED = RunLength(14, batch_samples=8, batch_tokens=512, begin=Position(steps=8, samples=32, tokens=2048))
"""8 steps of 256 tokens, then 6 of 512."""


@pytest.mark.parametrize("milestone", ["3584tok", "56sp", "11ba"])
def test_a_milestone_comes_when_it_has_been_consumed(milestone: str) -> None:
    multiplier = build_multiplier("MultiStepScheduler", {"milestones": [milestone], "gamma": 0.1}, RESUMED)
    assert [multiplier(step) for step in range(15)] == pytest.approx([1.0] * 11 + [0.1] * 4)


def test_a_cooldown_in_tokens_ends_with_the_run() -> None:
    kwargs = {"t_warmup": "512tok", "t_cooldown": "1024tok"}
    multiplier = build_multiplier("constant_with_linear_cooldown_with_warmup", kwargs, RESUMED)
    values = [multiplier(step) for step in range(15)]
    assert values == pytest.approx([0, 0.5, *[1] * 11, 0.5, 0])
    assert parse("1dur").to("tok", RESUMED) == 2048 + 6 * 512
