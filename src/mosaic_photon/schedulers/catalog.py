"""A schedule by name as a function of the optimizer step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

from mosaic_photon.errors import ConfigError, ask_upstream, nearest, nearest_if_close
from mosaic_photon.foundry import foundry_module
from mosaic_photon.job.kinds import check_scalars
from mosaic_photon.job.run_length import Duration, RunLength, common_unit, is_time, parse
from mosaic_photon.schedulers.wsd import WarmupStableDecay

Multiplier = Callable[[int], float]
"""Optimizer steps taken so far -> factor on the peak learning rate."""

WSD_SHAPES: dict[str, Literal["linear", "sqrt"]] = {
    "constant_with_linear_cooldown_with_warmup": "linear",
    "constant_with_sqrt_cooldown_with_warmup": "sqrt",
    "constant_with_sqrt_cooldown_with_warmup_and_switch": "sqrt",
}
REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError, AttributeError)
"""How Composer's schedulers refuse their arguments; AttributeError: a part of State that is not there."""
CHECKED_STEPS = 200
"""Steps over the whole run at which a schedule is tried before the first."""


def build_multiplier(name: str, kwargs: Mapping[str, Any], run: RunLength) -> Multiplier:
    """The schedule `name`: ours (without Composer), llm-foundry's registry name or a Composer class name.

    Times may be in different units; they are brought to the finest of them, and `dur` is a share of the run in it.

    Raises:
        ConfigError: no such schedule, wrong arguments, a unit that the run does not know, or a schedule that has no
            finite, non-negative value somewhere in the run.
    """
    try:
        if name in WSD_SHAPES:
            multiplier = _warmup_stable_decay(name, kwargs, run)
        else:
            multiplier = _composer(_find(name), kwargs, run)
        _try_over_run(multiplier, run)
    except ConfigError as error:
        raise ConfigError(f"lr_scheduler.name = {name!r}: {error}") from None
    return multiplier


def _warmup_stable_decay(name: str, kwargs: Mapping[str, Any], run: RunLength) -> Multiplier:
    arguments: dict[str, Any] = {"t_max": "1dur", "scale_warmup": False, "scale_cooldown": False}
    arguments |= {"switch_scale": 1.0} if name.endswith("_and_switch") else {}
    _check_names(kwargs, {"t_warmup", "t_cooldown", *arguments}, {"t_warmup", "t_cooldown"})
    arguments |= kwargs
    durations = [parse(arguments[key]) for key in ("t_warmup", "t_cooldown", "t_max")]
    unit = common_unit(durations)
    t_warmup, t_cooldown, t_max = (duration.to(unit, run) for duration in durations)
    if t_max < run.total(unit):
        raise ConfigError(
            f"t_max = {arguments['t_max']!r} is {t_max}{unit}, shorter than the run, {run.total(unit)}{unit}"
        )
    try:
        schedule = WarmupStableDecay(t_warmup, t_cooldown, t_max, WSD_SHAPES[name], arguments.get("switch_scale", 1.0))
    except ConfigError as error:
        raise ConfigError(f"{error} (in {unit})") from None
    return lambda step: schedule(run.at(step, unit))


def _find(name: str) -> Callable[..., Any]:
    """A scheduler class or function of Composer's, by class name, or llm-foundry's, by registry name."""
    not_ours = f"it is not of this package.{nearest(name, WSD_SHAPES)} Any other schedule"
    found = _composers(not_ours)
    if name not in found:
        found |= _foundrys(not_ours)
    if name not in found:
        raise ConfigError(f"there is no such schedule.{nearest(name, set(found) | set(WSD_SHAPES))}")
    return found[name]


def _composers(not_ours: str) -> dict[str, Callable[..., Any]]:
    optim = foundry_module("composer.optim", not_ours)
    names = [name for name in optim.__all__ if name.endswith("Scheduler") and name != "ComposerScheduler"]
    return {name: getattr(optim, name) for name in names}


def _foundrys(not_ours: str) -> dict[str, Callable[..., Any]]:
    foundry_module("llmfoundry.optim", not_ours)  # registers its schedulers
    from llmfoundry import registry

    return dict(registry.schedulers.get_all())


def _composer(factory: Callable[..., Any], kwargs: Mapping[str, Any], run: RunLength) -> Multiplier:
    """A Composer scheduler, driven by the optimizer step."""
    from composer.core import Time, Timestamp

    if isinstance(factory, type):
        parameters = inspect.signature(factory).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            _check_names(kwargs, set(parameters), {n for n, p in parameters.items() if p.default is p.empty})
            check_scalars("lr_scheduler.kwargs", factory, kwargs)
    durations = [parse(text) for value in kwargs.values() for text in _times(value)]
    unit = common_unit(durations)
    arguments = {key: _in_unit(value, unit, run) for key, value in kwargs.items()}
    refused = "its arguments are refused"
    is_class = isinstance(factory, type)
    scheduler = ask_upstream(refused, REFUSALS, factory, **arguments) if is_class else partial(factory, **arguments)
    epoch = run.epoch_batches
    state = SimpleNamespace(  # the part of composer.State that schedulers read
        timestamp=Timestamp(),
        max_duration=Time(run.total(unit), unit),
        dataloader_len=None if epoch is None else Time(epoch, "ba"),
    )

    def multiplier(step: int) -> float:
        state.timestamp = Timestamp(
            epoch=step // epoch if epoch else 0,
            batch=step,
            sample=run.at(step, "sp") if run.batch_samples else 0,
            token=run.at(step, "tok") if run.batch_tokens else 0,
            batch_in_epoch=step % epoch if epoch else step,
        )
        return float(ask_upstream(refused, REFUSALS, scheduler, state))

    return multiplier


def _times(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in values if is_time(text)]


def _in_unit(value: Any, unit: str, run: RunLength) -> Any:
    """A time string, or the time strings in a list, in the schedule's unit; anything else as it is."""
    if isinstance(value, list | tuple):
        return [_in_unit(item, unit, run) for item in value]
    if not is_time(value):
        return value
    duration: Duration = parse(value)
    return value if duration.unit == "dur" else f"{duration.to(unit, run)}{unit}"


def _check_names(given: Mapping[str, Any], accepted: set[str], required: set[str]) -> None:
    for key in given:
        if key not in accepted:
            raise ConfigError(
                f"it does not take {key!r}.{nearest_if_close(key, accepted)} It takes {', '.join(sorted(accepted))}"
            )
    missing = sorted(required - set(given))
    if missing:
        raise ConfigError(f"[lr_scheduler.kwargs] must give {', '.join(missing)}")


def _try_over_run(multiplier: Multiplier, run: RunLength) -> None:
    """Ask for the first, the last and some values in between, so that what is wrong shows before the first step."""
    stride = max(1, run.steps // CHECKED_STEPS)
    for step in [*range(0, run.steps, stride), run.steps - 1, run.steps]:
        value = multiplier(step)
        if not 0 <= value < math.inf:
            raise ConfigError(f"its value at step {step} is {value}")
