"""What Composer callbacks see of a TorchTitan job: a model, metrics, a logger destination."""

import json
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import torch
from composer.loggers import LoggerDestination
from composer.models import ComposerModel
from torchmetrics import Metric

from mosaic_photon.names import clean_name
from mosaic_photon.titan.layouts import whole
from mosaic_photon.titan.parts import BaseLogger
from mosaic_photon.titan.tools import logger as console


class ModelView(ComposerModel):
    """The job's model parts under their names in the whole model. TorchTitan runs the parts, nobody this."""

    def __init__(self, parts: Sequence[torch.nn.Module], flops_per_step: float) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)
        self._flops_per_step = flops_per_step

    def named_modules(
        self, memo: set[torch.nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.nn.Module]]:
        """Modules of all parts, without the names that compile and activation checkpointing put in between."""
        for part in self.parts:
            for name, module in part.named_modules(memo, prefix, remove_duplicate):
                yield clean_name(name), module

    def forward(self, batch: Any) -> Any:
        """Not for callbacks: a forward pass here would be one more than the job makes."""
        raise NotImplementedError("a callback called the model; TorchTitan runs its parts itself")

    def loss(self, outputs: Any, batch: Any) -> Any:
        """See `forward`."""
        raise NotImplementedError("a callback asked the model for a loss; state.loss has it")

    def flops_per_batch(self, batch: Any) -> float:
        """This rank's share of the floating-point operations of one optimizer step, by TorchTitan's count."""
        del batch
        return self._flops_per_step


class LatestValue(Metric):
    """A metric whose value the trainer sets: the mean over the global batch is already computed."""

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.value = torch.tensor(float("nan"))

    def update(self, value: torch.Tensor) -> None:
        """Replace the value, a scalar on any device."""
        self.value = value

    def compute(self) -> torch.Tensor:
        """The value last set; nan before."""
        return self.value


def language_metrics() -> dict[str, LatestValue]:
    """llm-foundry's two metrics of a language model."""
    return {"LanguageCrossEntropy": LatestValue(), "LanguagePerplexity": LatestValue()}


def set_loss(metrics: dict[str, LatestValue], loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Set both metrics from a mean loss; returns their values by name."""
    values = {"LanguageCrossEntropy": loss, "LanguagePerplexity": loss.exp()}
    for name, value in values.items():
        metrics[name].update(value)
    return values


class TitanDestination(LoggerDestination):
    """Sends what callbacks log to TorchTitan's metric logger (TensorBoard, W&B), which writes on one rank."""

    def __init__(self, titan_logger: BaseLogger, is_first_rank: bool) -> None:
        self._logger = titan_logger
        self._writes = type(titan_logger) is not BaseLogger  # TorchTitan's that does nothing
        self._is_first_rank = is_first_rank

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log numbers at a step; tensors are fetched from their device where they are written. Print the rest once."""
        values = {name: whole(value) for name, value in metrics.items()}
        numbers = {name: value for name, value in values.items() if _is_number(value)}
        if numbers and self._writes:
            self._logger.log({name: _number(value) for name, value in numbers.items()}, step)
        others = {name: value for name, value in values.items() if name not in numbers}
        if others and self._is_first_rank:
            console.info(f"Callbacks, step {step}: {json.dumps(others, default=str)}")

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Print once; TorchTitan's metric loggers take numbers only."""
        if self._is_first_rank and hyperparameters:
            console.info(f"Callbacks: {json.dumps(hyperparameters, default=str)}")

    def log_table(
        self, columns: list[str], rows: list[list[Any]], name: str = "Table", step: int | None = None
    ) -> None:
        """Print once; TorchTitan's metric loggers take numbers only."""
        if self._is_first_rank:
            table = {"name": name, "step": step, "columns": columns, "rows": rows}
            console.info(f"Callbacks: {json.dumps(table, default=str)}")


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, Real)


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value
