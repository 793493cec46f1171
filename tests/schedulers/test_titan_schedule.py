"""TorchTitan's own schedule by its fields: never negative, never above its peak, never shorter than the run."""

import itertools
from typing import Any

import pytest

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.run_length import RunLength
from mosaic_photon.job.tables import LRScheduler
from mosaic_photon.schedulers.builder import multiplier_of

STEPS = 10


@pytest.mark.parametrize("kind", ["linear", "sqrt", "cosine"])
def test_learning_rates_stay_between_0_and_the_peak(kind: Any) -> None:
    """Up to the value after the last step, which torch asks for too."""
    for warmup, total, ratio, least in itertools.product(
        (0, 3, 10), (None, 10, 25), (None, 0.0, 0.4, 1.0), (0, 0.1, 1)
    ):
        config = LRScheduler(
            warmup_steps=warmup, total_steps=total, decay_ratio=ratio, decay_type=kind, min_lr_factor=least
        )
        multiplier = multiplier_of(config, RunLength(STEPS))
        values = [multiplier(step) for step in range(STEPS + 1)]
        assert min(values) >= 0 and max(values) <= 1, (config, values)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("total_steps", 6, "lr_scheduler.total_steps = 6 is shorter than the run, training.steps = 10"),
        ("total_steps", 0, "lr_scheduler.total_steps = 0 is shorter than the run"),
        ("min_lr_factor", 1.5, "lr_scheduler.min_lr_factor = 1.5: it is a share, at most 1"),
        ("decay_ratio", 1.1, "lr_scheduler.decay_ratio = 1.1: it is a share, at most 1"),
        ("min_lr_factor", -0.1, "lr_scheduler.min_lr_factor = -0.1: a finite number >= 0"),
    ],
)
def test_what_would_be_negative_or_climb_is_refused(field: str, value: Any, said: str) -> None:
    """By what the job, its doctor and the drawing of the schedule all ask."""
    config = LRScheduler(**{field: value})
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        multiplier_of(config, RunLength(STEPS))
