"""The warmup-stable-decay schedules as Composer schedulers, for Composer's Trainer and llm-foundry's train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from composer.core import State, Time
from composer.optim import ComposerScheduler
from composer.optim.scheduler import _convert_time, _raise_if_max_duration_exceeds_t_max

from mosaic_photon.errors import ConfigError
from mosaic_photon.schedulers.wsd import WarmupStableDecay


@dataclass(eq=False)
class ConstantWithLinearCooldownWithWarmupScheduler(ComposerScheduler):
    """Linear warm-up from 0, a plateau, and a linear cooldown to 0 that ends at t_max.

    Args:
        t_warmup: length of the warm-up, a Composer time or time string.
        t_cooldown: length of the cooldown.
        t_max: length of the schedule.
        scale_warmup: Composer's scale schedule ratio stretches the warm-up too, not only t_max.
        scale_cooldown: the same for the cooldown.

    Raises:
        ConfigError: when called: the times have different units, or warm-up and cooldown are longer than t_max.
        ValueError: when called: t_max is shorter than the run, or a time is in seconds.
    """

    shape: ClassVar[Literal["linear", "sqrt"]] = "linear"
    switch_scale = 1.0

    t_warmup: str | Time
    t_cooldown: str | Time
    t_max: str | Time = "1dur"
    scale_warmup: bool = False
    scale_cooldown: bool = False

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """The multiplier of the learning rate at the state's timestamp, stretched by `ssr`."""
        t_warmup = _convert_time(self.t_warmup, state, ssr=ssr if self.scale_warmup else 1.0)
        t_cooldown = _convert_time(self.t_cooldown, state, ssr=ssr if self.scale_cooldown else 1.0)
        t_max = _convert_time(self.t_max, state, ssr=ssr)
        name = type(self).__name__
        if not t_warmup.unit == t_cooldown.unit == t_max.unit:
            raise ConfigError(
                f"{name}: t_warmup {self.t_warmup}, t_cooldown {self.t_cooldown} and t_max {self.t_max} must have one "
                f"unit; they come to {t_warmup.to_timestring()}, {t_cooldown.to_timestring()}, {t_max.to_timestring()}"
            )
        _raise_if_max_duration_exceeds_t_max(t_max, state)
        try:
            schedule = WarmupStableDecay(t_warmup.value, t_cooldown.value, t_max.value, self.shape, self.switch_scale)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error} (in {t_max.unit.value})") from None
        return schedule(state.timestamp.get(t_max.unit).value)


class ConstantWithSqrtCooldownWithWarmupScheduler(ConstantWithLinearCooldownWithWarmupScheduler):
    """The same with the cooldown 1 - sqrt(s), s the share of it that has passed."""

    shape = "sqrt"


class ConstantWithSqrtCooldownWithWarmupAndSwitchScheduler(ConstantWithSqrtCooldownWithWarmupScheduler):
    """The same with plateau and cooldown, not the warm-up, multiplied by `switch_scale`."""

    def __init__(
        self,
        t_warmup: str | Time,
        t_cooldown: str | Time,
        switch_scale: float = 1.0,
        t_max: str | Time = "1dur",
        scale_warmup: bool = False,
        scale_cooldown: bool = False,
    ) -> None:
        super().__init__(t_warmup, t_cooldown, t_max, scale_warmup, scale_cooldown)
        self.switch_scale = switch_scale
