"""OptimizerMonitor: what an optimizer does to each parameter, under Composer's names, at a fraction of the cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import Callback, State, Time
from composer.loggers import Logger
from torch.distributed.tensor import DTensor

from mosaic_photon.callbacks import curvature
from mosaic_photon.callbacks.interval import Interval
from mosaic_photon.callbacks.measure import (
    LocalNumbers,
    Reducer,
    extremes,
    local_shard,
    shard_counts,
    squared_norms,
)
from mosaic_photon.errors import ConfigError
from mosaic_photon.names import clean_name

MOMENTS = {"moment": ("exp_avg", "momentum_buffer"), "moment2": ("exp_avg_sq",)}
"""Moment -> names that optimizers give that state."""

L2_NORMS = {f"l2_norm/{tensor}" for tensor in ("grad", "param", "update", *MOMENTS)}
EXTREMES = {"min/moment2", "max/moment2"}

CURVATURE = "curvature/"
REACHED, CAME = "reached", "came"
"""Whether a gradient has come so far, and in this step: above 0 where it did on some rank."""


@dataclass(frozen=True)
class Trained:
    """A parameter that an optimizer owns; its first gradient may come late (an expert, a thawed layer) or never."""

    name: str
    parameter: torch.nn.Parameter
    optimizer: torch.optim.Optimizer

    def gradient(self) -> torch.Tensor:
        """This rank's shard of the gradient; zeros in a step that did not reach the parameter."""
        if self.parameter.grad is None:
            return torch.zeros_like(local_shard(self.parameter))
        return local_shard(self.parameter.grad, like=self.parameter)


class OptimizerMonitor(Callback):
    """Logs norms of gradients, parameters, updates and moments, per parameter and over the model.

    For each parameter NAME and for `global`, at the end of a reported batch: `l2_norm/grad/NAME`, `l2_norm/param/NAME`,
    `l2_norm/update/NAME` (the change that the step made), `l2_norm/moment/NAME`, `l2_norm/moment2/NAME`,
    `min/moment2/NAME`, `max/moment2/NAME`, and whatever else the optimizer itself reports to Composer's monitor.
    Gradients are those that the optimizer was given, after clipping. Numbers are of whole parameters, however sharded.
    A parameter counts, in `global` too, once it has had a gradient on some rank.

    With `curvature`, `curvature/MEASURE/NAME` for each of `curvature.MEASURES`, mean, median, min and max over the
    parameters as `curvature/MEASURE/mean` …, and `curvature/local_lipschitz/global`, all between the last two steps;
    nothing where there is no step before. That takes a copy of parameters and gradients from one step to the next, and
    where clipping scaled the two gradients by different factors their difference is not that of the loss's gradients.

    Args:
        log_optimizer_metrics: False logs the gradients' norms only.
        batch_log_interval: batches between reports, Composer's name for `interval`.
        interval: batches, or a time string such as "10ba" or "1000000tok". Not together with `batch_log_interval`.
        only_global: leave out what belongs to a single parameter.
        curvature: log curvature.

    Raises:
        ValueError: both intervals are given, or one is not positive.
    """

    def __init__(
        self,
        log_optimizer_metrics: bool = True,
        batch_log_interval: int | None = None,
        *,
        interval: int | str | Time[Any] | None = None,
        only_global: bool = False,
        curvature: bool = False,
    ) -> None:
        if interval is not None and batch_log_interval is not None:
            raise ConfigError("interval and batch_log_interval mean the same: give one of them")
        every = interval if interval is not None else batch_log_interval
        self.interval = Interval(10 if every is None else every, ahead=curvature)
        self.log_optimizer_metrics = log_optimizer_metrics
        self.only_global = only_global
        self.curvature = curvature
        self._own_metrics = log_optimizer_metrics
        self._forget()

    def _forget(self) -> None:
        self._report = False
        self._trained: list[Trained] = []
        self._reached: set[str] = set()
        self._came: set[str] = set()
        self._before: list[torch.Tensor] = []
        self._previous: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None
        self._curvature_sums: dict[str, torch.Tensor] = {}
        self._reducer: Reducer | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Count intervals from here."""
        del logger
        self._forget()
        self.interval.start(state)

    @torch.no_grad()
    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Before the optimizer's step: keep what the report needs and the step destroys."""
        del logger
        self._report, report_next = self.interval.due(state)
        self._trained = self._trained or _trained(state)
        self._came = {one.name for one in self._trained if one.parameter.grad is not None}
        self._reached |= self._came
        if self._report and self.log_optimizer_metrics:
            self._before = [local_shard(one.parameter).clone() for one in self._trained]
        if self.curvature:
            self._compare_with_previous(report_next and bool(self._came))

    def _compare_with_previous(self, report_next: bool) -> None:
        previous, self._previous = self._previous, None
        if not (report_next or (self._report and previous)):
            return
        parameters = [local_shard(one.parameter) for one in self._trained]
        gradients = [one.gradient() for one in self._trained]
        if self._report and previous is not None:
            steps, changes = torch._foreach_sub(parameters, previous[0]), torch._foreach_sub(gradients, previous[1])
            self._curvature_sums = curvature.local_sums(steps, changes, gradients)
        if report_next:
            self._previous = ([one.clone() for one in parameters], [one.clone() for one in gradients])

    @torch.no_grad()
    def batch_end(self, state: State, logger: Logger) -> None:
        """Measure, reduce, log."""
        if not self._report:
            return
        numbers = self._measure()
        if self._reducer is None:
            counts = shard_counts(state.model)
            self._reducer = Reducer({one.name: counts[one.parameter] for one in self._trained}, numbers)
        values = self._reducer.reduce(numbers)
        self._report, self._before, self._curvature_sums = False, [], {}
        if any(values.pop(CAME)):
            logger.log_metrics(self._metrics(*_of_reached(values, self._reducer.names)))
        elif not _without_labels(state.batch):  # else a trainer passes over the step
            raise RuntimeError("no parameter had a gradient when the optimizer was to step: nothing can be measured")

    def _measure(self) -> LocalNumbers:
        normed = {"l2_norm/grad": [one.gradient() for one in self._trained]}
        maxima: dict[str, torch.Tensor] = {}
        if self.log_optimizer_metrics:
            parameters = [local_shard(one.parameter) for one in self._trained]
            torch._foreach_sub_(self._before, parameters)
            normed |= {"l2_norm/param": parameters, "l2_norm/update": self._before}
            for moment, keys in MOMENTS.items():
                tensors = self._states(keys)
                if tensors:
                    normed[f"l2_norm/{moment}"] = tensors
                    if moment == "moment2":
                        maxima["max/moment2"], maxima["min/moment2"] = extremes(tensors)
        sums = squared_norms(normed)
        like = sums["l2_norm/grad"]
        sums |= {REACHED: self._marked(self._reached, like), CAME: self._marked(self._came, like)}
        if self.curvature:
            sums |= {
                CURVATURE + name: self._curvature_sums.get(name, torch.zeros_like(like)) for name in curvature.SUMS
            }
        return LocalNumbers(sums, self._optimizers_own(), maxima)

    def _marked(self, names: set[str], like: torch.Tensor) -> torch.Tensor:
        """1 for each parameter of these names, else 0; filled on the device, as copying a list there waits."""
        marked = torch.ones_like(like)
        for index, one in enumerate(self._trained):
            if one.name not in names:
                marked[index] = 0
        return marked

    def _states(self, keys: Sequence[str]) -> list[torch.Tensor]:
        """This rank's shards of one optimizer state, for all parameters; empty where the optimizers do not keep it.

        Zeros where a parameter has no state yet.
        """
        for key in keys:
            tensors = [one.optimizer.state[one.parameter].get(key) for one in self._trained]
            if any(isinstance(tensor, torch.Tensor) for tensor in tensors):
                return [
                    torch.zeros_like(local_shard(one.parameter)) if tensor is None else local_shard(tensor)
                    for one, tensor in zip(self._trained, tensors, strict=True)
                ]
        return []

    def _optimizers_own(self) -> dict[str, torch.Tensor]:
        """Metrics beside norms that the optimizer reports to Composer's monitor, for each parameter with a state."""
        stepped = [(index, one) for index, one in enumerate(self._trained) if one.optimizer.state[one.parameter]]
        if not self._own_metrics or not stepped:
            return {}
        reports: dict[str, torch.Tensor] = {}
        nothing = torch.zeros(
            len(self._trained), dtype=torch.float64, device=local_shard(stepped[0][1].parameter).device
        )
        for index, one in stepped:
            reporter = getattr(one.optimizer, "report_per_parameter_metrics", None)
            report = reporter(one.parameter, one.name, {}) if callable(reporter) else {}
            for key, value in report.items():
                quantity = key.removesuffix(f"/{one.name}")
                if quantity not in L2_NORMS | EXTREMES:
                    number = value.full_tensor() if isinstance(value, DTensor) else torch.as_tensor(value)
                    reports.setdefault(quantity, nothing.clone())[index] = number.detach().reshape(())
            if not reports:  # the first parameter tells what an optimizer reports
                break
        self._own_metrics = bool(reports)
        return reports

    def _metrics(self, values: dict[str, list[float]], names: Sequence[str]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for quantity, row in values.items():
            if quantity.startswith(CURVATURE):
                continue
            if quantity in L2_NORMS:  # sums of squares
                metrics[f"{quantity}/global"] = sum(row) ** 0.5
                row = [value**0.5 for value in row]
            elif quantity in EXTREMES:
                sign = 1 if quantity.startswith("max") else -1
                metrics[f"{quantity}/global"] = sign * max(row)
                row = [sign * value for value in row]
            if not self.only_global:
                metrics.update(zip([f"{quantity}/{name}" for name in names], row, strict=True))
        if self.curvature:
            sums = [{name: values[CURVATURE + name][index] for name in curvature.SUMS} for index in range(len(names))]
            metrics |= self._curvature_metrics(sums, names)
        return metrics

    def _curvature_metrics(self, sums: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, float]:
        measured = [curvature.measures(one) for one in sums]
        metrics: dict[str, float] = {}
        if not any(one["ss"] for one in sums):  # no step before this one
            return metrics
        for measure in curvature.MEASURES:
            row = [one[measure] for one in measured]
            for statistic, value in curvature.summary(row).items():
                metrics[f"{CURVATURE}{measure}/{statistic}"] = value
            if not self.only_global:
                metrics.update(zip([f"{CURVATURE}{measure}/{name}" for name in names], row, strict=True))
        whole = {name: sum(one[name] for one in sums) for name in curvature.SUMS}
        metrics[f"{CURVATURE}local_lipschitz/global"] = curvature.measures(whole)["local_lipschitz"]
        return metrics


def _without_labels(batch: Any) -> bool:
    """Whether a batch has labels of which all are ignored: a trainer may then pass over the step."""
    labels = batch.get("labels") if isinstance(batch, dict) else None
    return labels is not None and bool((labels == -100).all())


def _of_reached(values: dict[str, list[float]], names: Sequence[str]) -> tuple[dict[str, list[float]], list[str]]:
    """What was measured, of the parameters alone that have had a gradient on some rank."""
    reached = [index for index, ranks in enumerate(values[REACHED]) if ranks > 0]
    rows = {quantity: [row[index] for index in reached] for quantity, row in values.items() if quantity != REACHED}
    return rows, [names[index] for index in reached]


def _trained(state: State) -> list[Trained]:
    owners = {
        parameter: optimizer
        for optimizer in state.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return [
        Trained(clean_name(name), parameter, owners[parameter])
        for name, parameter in state.model.named_parameters()
        if parameter in owners
    ]
