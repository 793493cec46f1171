"""TorchTitan's `build_lr_schedulers_fn`: its own schedule, or any other by name."""

from __future__ import annotations

import dataclasses

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.run_length import RunLength
from mosaic_photon.job.tables import LRScheduler as LRSchedulerConfig
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.schedulers.catalog import Multiplier, build_multiplier
from mosaic_photon.schedulers.container import PositionOnlySchedulers
from mosaic_photon.titan.parts import LRSchedulersContainer, OptimizersContainer, stock_schedule


def build_lr_schedulers(
    optimizers: OptimizersContainer,
    lr_scheduler_config: LRSchedulerConfig,
    training_steps: int,
    run_length: RunLength | None = None,
) -> LRSchedulersContainer:
    """The job's schedule on every optimizer.

    Args:
        optimizers: TorchTitan's container.
        lr_scheduler_config: the job's [lr_scheduler].
        training_steps: optimizer steps of the whole run.
        run_length: what a step is in samples, tokens and epochs; without it only batches and shares of the run are
            known.

    Raises:
        ConfigError: as `multiplier_of`.
    """
    run = run_length or RunLength(training_steps)
    return PositionOnlySchedulers(optimizers, multiplier_of(lr_scheduler_config, run))


def check_schedule(job: MosaicJobConfig, facts: Facts) -> None:
    """The job's schedule must exist, take what the job sets, and have a value at every step of the run."""
    multiplier_of(job.lr_scheduler, facts.run_length)


def multiplier_of(config: LRSchedulerConfig, run: RunLength) -> Multiplier:
    """The job's schedule as a function of the step.

    Raises:
        ConfigError: as `build_multiplier`, a field of TorchTitan's schedule out of range or together with a name, or
            TorchTitan's schedule shorter than the run.
    """
    fields = {field.name for field in dataclasses.fields(LRSchedulerConfig)} - {"name", "kwargs"}
    given = {name: value for name in sorted(fields) if (value := getattr(config, name)) is not None}
    if config.name is not None:
        if given:
            raise ConfigError(
                f"lr_scheduler.{next(iter(given))} belongs to TorchTitan's schedule, but lr_scheduler.name = "
                f"{config.name!r}; its arguments go to [lr_scheduler.kwargs]."
            )
        return build_multiplier(config.name, config.kwargs, run)
    if config.kwargs:
        raise ConfigError("[lr_scheduler.kwargs] needs lr_scheduler.name; TorchTitan's own schedule has fields.")
    for name, value in given.items():
        if name != "decay_type" and not 0 <= value < float("inf"):
            raise ConfigError(f"lr_scheduler.{name} = {value}: a finite number >= 0 is right.")
        if name in ("decay_ratio", "min_lr_factor") and value > 1:
            raise ConfigError(f"lr_scheduler.{name} = {value}: it is a share, at most 1.")
    if given.get("total_steps", run.steps) < run.steps:
        raise ConfigError(
            f"lr_scheduler.total_steps = {given['total_steps']} is shorter than the run, training.steps = {run.steps}: "
            "beyond its end the schedule's learning rates are negative, or climb again. Leave it out, or make it at "
            f"least {run.steps}; what the schedule is to stay at after its decay is min_lr_factor."
        )
    return stock_schedule(given, run.steps)
