"""Warmup, stable, decay as a pure function of time (Hägele et al. 2024, "Scaling laws and compute-optimal training
beyond fixed training durations"). Needs nothing but Python.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mosaic_photon.errors import ConfigError


@dataclass(frozen=True)
class WarmupStableDecay:
    """Multiplier of the peak learning rate at time t; all times in one unit, of the caller's choice.

    With s = (t - (total - cooldown)) / cooldown, from 0 at the start of the cooldown to 1 at the end:

        t / warmup                        t < warmup
        scale                             until the cooldown starts
        scale * (1 - s)                   linear
        scale * (1 - sqrt(s))             sqrt
        0                                 t >= total, if there is a cooldown

    Raises:
        ConfigError: a time is negative, scale is no finite number >= 0, or warmup + cooldown > total.
    """

    warmup: float
    cooldown: float
    total: float
    shape: Literal["linear", "sqrt"] = "linear"
    scale: float = 1.0
    """Multiplier of plateau and cooldown: a restart at another learning rate, without another warm-up."""

    def __post_init__(self) -> None:
        if min(self.warmup, self.cooldown, self.total) < 0:
            raise ConfigError(
                f"times must not be negative: warmup {self.warmup}, cooldown {self.cooldown}, total {self.total}"
            )
        is_number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not (is_number and 0 <= self.scale < math.inf):
            raise ConfigError(f"switch_scale = {self.scale!r} must be a finite number >= 0")
        if self.warmup + self.cooldown > self.total:
            raise ConfigError(
                f"warmup {self.warmup} + cooldown {self.cooldown} = {self.warmup + self.cooldown} is longer than the "
                f"schedule, {self.total}"
            )

    def __call__(self, t: float) -> float:
        if t < self.warmup:
            return t / self.warmup
        elapsed = t - (self.total - self.cooldown)
        if elapsed < 0 or self.cooldown == 0:
            return self.scale
        s = min(elapsed / self.cooldown, 1.0)
        return self.scale * (1 - (s if self.shape == "linear" else math.sqrt(s)))
