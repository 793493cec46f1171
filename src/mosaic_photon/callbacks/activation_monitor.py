"""ActivationMonitor: what goes in and out of each module, of the whole global batch and whatever the layout."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from composer.callbacks import ActivationMonitor as ComposersActivationMonitor
from composer.core import State, TimeUnit
from composer.loggers import Logger, WandBLogger
from torch.utils.module_tracker import ModuleTracker

from mosaic_photon.callbacks.measure import LocalNumbers, Reducer
from mosaic_photon.names import clean_name

STATISTICS = ("l2_norm", "average", "kurtosis", "max")
"""Of a row, which is one token's activations; logged is the mean over the rows."""
ROWS = "rows"


class ActivationMonitor(ComposersActivationMonitor):
    """Composer's, with its arguments and names, and numbers that do not hang on the layout.

    `activations/STATISTIC/MODULE_input.N` and `..._output.N` are means over all tokens of a step's global batch, those
    of all micro-batches and ranks, computed in float32 at least. Composer's are of rank 0's first micro-batch, and take
    a tensor that a module returns for a sequence of outputs, one a sample. Complex tensors are left out.

    Not for modules that are compiled, which see no hooks, nor for tensor parallelism, where several ranks hold a row.
    """

    _sums: dict[str, torch.Tensor]
    """Module and tensor -> [STATISTICS and ROWS], float64: sums over rows so far."""
    _began: int | None = None
    """The batch that is looked at, the same on all ranks; None where the interval is not over."""
    _reducer: Reducer | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        """Look at every module's forward passes in this step, if it is to be reported."""
        del logger
        now = state.timestamp
        first_of_epoch = self.interval.unit == TimeUnit.BATCH or now.batch_in_epoch == 0
        if not first_of_epoch or now.get(self.interval.unit).value % self.interval.value:
            return
        self._sums, self._began = {}, now.batch.value
        names = {clean_name(name): module for name, module in state.model.named_modules()}
        for name, module in names.items():  # the model itself may be a stage; what it returns, one of the others has
            if name and not any(ignored in name for ignored in self.ignore_module_types or ()):
                self.handles.append(module.register_forward_hook(partial(self._look, name)))

    def before_forward(self, state: State, logger: Logger) -> None:
        """Composer's place to begin."""

    def after_forward(self, state: State, logger: Logger) -> None:
        """Composer's place to end."""

    def batch_end(self, state: State, logger: Logger) -> None:
        """Reduce and log, at the batch that had not ended when the step began, as Composer does.

        All ranks reduce, also those that have seen nothing, as a pipeline stage all of whose modules are ignored.
        """
        if self._began is None:
            return
        batch, self._began = self._began, None
        self.remove_forward_hooks()
        nothing = state.device.tensor_to_device(torch.zeros(len(STATISTICS) + 1, dtype=torch.float64))
        if self._reducer is None:
            self._names = list(self._sums)
            reducer = Reducer(dict.fromkeys(self._names, 1), self._numbers(nothing))
            if not reducer.names:  # nobody has seen anything: a step without labels runs no model
                return
            self._reducer = reducer
        means = self._reducer.reduce(self._numbers(nothing))
        rows = means.pop(ROWS)
        metrics = {
            f"activations/{statistic}/{name}": value / count
            for statistic, values in means.items()
            for name, value, count in zip(self._reducer.names, values, rows, strict=True)
            if count
        }
        wandb = [one for one in logger.destinations if isinstance(one, WandBLogger)] if self.only_log_wandb else []
        for destination in wandb or [logger]:
            destination.log_metrics(metrics, batch)

    def _look(self, name: str, module: torch.nn.Module, inputs: Sequence[Any], output: Any) -> None:
        del module
        if ModuleTracker().is_bw or not torch.is_grad_enabled():  # recomputed; or a pipeline asks for shapes
            return
        outputs = output.values() if isinstance(output, dict) else [output] if torch.is_tensor(output) else output
        with torch.no_grad():
            for kind, values in (("input", inputs), ("output", outputs or ())):
                for index, value in enumerate(values):
                    self._add(name, f"_{kind}.{index}", value)

    def _add(self, name: str, suffix: str, value: Any) -> None:
        if isinstance(value, list | tuple):
            for index, one in enumerate(value):
                self._add(f"{name}_{index}", suffix, one)
        elif torch.is_tensor(value) and value.is_floating_point() and value.numel():
            key, sums = name + suffix, row_sums(value)
            self._sums[key] = self._sums[key] + sums if key in self._sums else sums

    def _numbers(self, nothing: torch.Tensor) -> LocalNumbers:
        """STATISTICS and ROWS -> [modules and tensors], of those that the first report knew, which may be none.

        `nothing` [STATISTICS and ROWS], float64, on the device, stands for what this step has not seen.
        """
        table = torch.stack([nothing, *(self._sums.get(name, nothing) for name in self._names)])[1:]
        return LocalNumbers({}, dict(zip((*STATISTICS, ROWS), table.unbind(dim=1), strict=True)), {})


def row_sums(value: torch.Tensor) -> torch.Tensor:
    """Sums over the rows of `value` [..., D] of their L2 norm, mean, kurtosis and maximum, and the number of rows: [5].

    float64, on the value's device. The kurtosis is the fourth central moment by the square of the second.
    """
    rows = value.detach().reshape(-1, value.shape[-1] if value.ndim else 1)
    rows = rows.float() if rows.dtype.itemsize < 4 else rows
    centred = (rows - rows.mean(dim=-1, keepdim=True)).square()
    statistics = (
        torch.linalg.vector_norm(rows, dim=-1),
        rows.mean(dim=-1),
        centred.square().mean(dim=-1) / centred.mean(dim=-1).square(),
        rows.amax(dim=-1),
        torch.ones_like(rows[:, 0]),
    )
    return torch.stack([statistic.sum(dtype=torch.float64) for statistic in statistics])
