"""A run's stages, `mosaic_stages` of a data config: its mistakes, and how long they are in steps. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.job.run_length import Duration, RunLength, parse

STAGES = "mosaic_stages"
KEYS = {
    "duration": "How long it is: '2e9tok', '500ba', '1e6sp' or '0.1dur'. The last may lack it, and goes on to the end.",
    "ramp": "Whether proportions go in a line from those of the stage before to this one's.",
    "proportion": "Of each stream that is read, against each other.",
    "max_epochs": "How often streams may have been read by the end of the stage; a plan of more is refused.",
}
UNITS = ("tok", "sp", "ba", "dur")
Stages = list[dict[str, Any]]


def check_stages(stages: Any, dataset: Mapping[str, Any], streams: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for the first mistake that the stages alone tell.

    Args:
        stages: what stands under `mosaic_stages`.
        dataset: the training data's table.
        streams: the data's streams by name.
        where: opens the message: the file and the key.
    """
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError(f"{where}: expected a list of tables, one a stage, found {stages!r}")
    _check_said_once(dataset, where)
    for number, stage in enumerate(stages, 1):
        at = f"{where}, stage {number}"
        for key in stage:
            if key not in KEYS:
                raise ConfigError(f"{at}: unknown key {key!r}.{nearest(key, KEYS)}")
        _check_numbers(stage, "proportion", streams, at, lambda value: value >= 0, "a number of at least 0")
        if not any(stage["proportion"].values()):
            raise ConfigError(f"{at}.proportion: all are 0; at least one stream must have more")
        _check_numbers(stage, "max_epochs", streams, at, lambda value: value > 0, "a number above 0")
        _check_length(stage, number == 1, number == len(stages), at)


def _check_length(stage: Mapping[str, Any], is_first: bool, is_last: bool, at: str) -> None:
    ramp = stage.get("ramp", False)
    if not isinstance(ramp, bool):
        raise ConfigError(f"{at}.ramp: expected true or false, found {ramp!r}")
    if ramp and is_first:
        raise ConfigError(f"{at}.ramp: there is no stage before it to ramp from; begin with one that is no ramp")
    if stage.get("duration") is not None:
        duration_of(stage, at)
    elif ramp:
        raise ConfigError(f"{at}.duration: missing; a ramp must have an end")
    elif not is_last:
        raise ConfigError(f"{at}.duration: missing; only the last stage may go on to the end of the run")


def _check_said_once(dataset: Mapping[str, Any], where: str) -> None:
    """What would say the same twice, or could not be had with stages."""
    streams = dataset.get("streams") or {}
    for key in ("proportion", "repeat", "choose"):
        if having := [repr(name) for name, stream in streams.items() if stream.get(key) is not None]:
            named = f"stream {having[0]}" if len(having) == 1 else f"the streams {', '.join(having)}"
            left_out = "its" if len(having) == 1 else "their"
            raise ConfigError(f"{where}: the stages say how much of {named} is read; leave out {left_out} {key}")
    if dataset.get("epoch_size") is not None:
        raise ConfigError(f"{where}: a run in stages has no epochs of its own; leave out epoch_size")
    method = dataset.get("batching_method")
    if method not in (None, "random"):
        raise ConfigError(f"{where}: the stages say what each batch is of; leave out batching_method = {method!r}")


def _check_numbers(
    stage: Mapping[str, Any], key: str, streams: Mapping[str, Any], at: str, fits: Callable[[float], bool], kind: str
) -> None:
    table = stage.get(key)
    if table is None and key == "max_epochs":
        return
    if not isinstance(table, dict) or not table:
        raise ConfigError(
            f"{at}.{key}: expected a table of streams, e.g. {{ {next(iter(streams))} = 1 }}, found {table!r}"
        )
    for name, value in table.items():
        if str(name) not in streams:
            raise ConfigError(f"{at}.{key}: there is no stream {name!r}.{nearest(name, streams)}")
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not fits(value):
            raise ConfigError(f"{at}.{key}.{name}: expected {kind}, found {value!r}")


def duration_of(stage: Mapping[str, Any], at: str) -> Duration:
    """How long a stage is to be. Raises ConfigError for what is no length of a stage."""
    text = stage["duration"]
    try:
        duration = parse(text)
    except ConfigError:
        duration = Duration(0, "")
    if duration.unit not in UNITS or not duration.value:
        raise ConfigError(
            f"{at}.duration: {text!r} is no length of a stage: a number above 0 with a unit of {', '.join(UNITS)} is"
            " right, e.g. '500ba'"
        )
    return duration


def steps_of(stage: Mapping[str, Any], run: RunLength, at: str) -> int | None:
    """How many steps a stage has, rounded; None: it goes on to the end.

    Raises:
        ConfigError: not even half a step, or a share of a run whose length is not known.
    """
    if stage.get("duration") is None:
        return None
    duration = duration_of(stage, at)
    if duration.unit == "dur" and not run.steps:
        raise ConfigError(
            f"{at}.duration: {stage['duration']!r} is a share of a job's steps, and here is no job; use 'ba'"
        )
    exact = duration.value * run.steps if duration.unit == "dur" else duration.value / run.per_step(duration.unit)
    if not (steps := math.floor(exact + 0.5)):
        raise ConfigError(f"{at}.duration: {stage['duration']!r} is {exact:.2g} steps, less than half of one")
    return steps
