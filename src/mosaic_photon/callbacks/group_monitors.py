"""LRMonitor and QuasiHyperbolicParameterMonitor: what each parameter group of the whole model is stepped with."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from composer.callbacks import LRMonitor as ComposersLRMonitor
from composer.core import Callback, State
from composer.loggers import Logger

from mosaic_photon.callbacks.measure import gathered

Group = tuple[str, dict[str, Any]]
"""An optimizer's name, and one of its groups."""

VALUES = ("v1", "v2", "nu", "nus", "beta", "betas", "momentum")
"""Keys of a parameter group that hold quasi-hyperbolic weights or decay rates: QHADOPT's, Adam's, qhoptim's."""


class LRMonitor(ComposersLRMonitor):
    """Logs `lr-OPTIMIZER/groupI`, the learning rate that the step was made with; Composer's is the next step's."""

    _groups: Sequence[Group] = ()
    _rates: dict[str, float]

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """The gradients are there; the schedule has not moved on yet."""
        del logger
        self._groups = self._groups or groups_of_model(state.optimizers)
        groups = [group for _, group in self._groups]
        share = next(
            (one["lr"] / one["initial_lr"] for one in groups if "params" in one and one.get("initial_lr")), 1.0
        )
        self._rates = {
            f"lr-{name}/group{index}": float(group["lr"] if "params" in group else group["initial_lr"] * share)
            for index, (name, group) in enumerate(self._groups)
        }

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log under the step's number."""
        del state
        logger.log_metrics(self._rates)


class QuasiHyperbolicParameterMonitor(Callback):
    """Logs each parameter group's v values and betas at the end of every batch.

    Keys are `quasi_hyperbolic/OPTIMIZER/groupI/v1` and, for pairs, `quasi_hyperbolic/OPTIMIZER/groupI/beta1`, `beta2`.
    """

    _groups: Sequence[Group] = ()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the values that the step was made with."""
        self._groups = self._groups or groups_of_model(state.optimizers)
        metrics: dict[str, float] = {}
        for index, (optimizer, group) in enumerate(self._groups):
            for key in VALUES:
                for name, value in _numbers(key, group.get(key)):
                    metrics[f"quasi_hyperbolic/{optimizer}/group{index}/{name}"] = value
        logger.log_metrics(metrics)


def groups_of_model(optimizers: Sequence[torch.optim.Optimizer]) -> list[Group]:
    """Every group of the whole model, numbered as in one process. Collective.

    Those that this rank has are its optimizers' own, with `params`. Of groups that lie on other pipeline stages alone
    there is what they were when this was called.
    """
    mine = [(type(one).__name__, group) for one in optimizers for group in one.param_groups]
    stages = [[(type(one).__name__, _options(group)) for group in one.param_groups] for one in optimizers]
    ranks = gathered(stages)
    if len(optimizers) == 1 and all(other == stages for other in ranks):
        return mine
    found: list[Group] = []
    for stage in (stage for stages in zip_longest(*ranks, fillvalue=[]) for stage in stages):  # in the model's order
        found += [group for group in stage if group not in found]
    own = {str((name, _options(group))): group for name, group in reversed(mine)}
    return [(name, own.get(str((name, options)), options)) for name, options in found]


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params" and not isinstance(value, torch.Tensor)}


def _numbers(key: str, value: object) -> list[tuple[str, float]]:
    """("v1", 0.9) -> v1; ("betas", (0.9, 0.999)) -> beta1, beta2; a missing value -> nothing."""
    if value is None:
        return []
    if isinstance(value, (tuple, list)):
        return [(f"{key.removesuffix('s')}{index}", float(one)) for index, one in enumerate(value, start=1)]
    return [(key, float(value))]  # type: ignore[arg-type]
