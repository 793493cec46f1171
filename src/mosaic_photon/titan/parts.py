"""The parts that TorchTitan's trainer is put together from: loss, optimizers, schedules, data, metrics."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.components.metrics import BaseLogger, MetricsProcessor
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from mosaic_photon.names import clean_name
from mosaic_photon.titan.releases import installed

IS_V03 = installed().folder == "v03"
if IS_V03:
    from torchtitan.components.optimizer import LRSchedulersContainer
else:
    from torchtitan.components.lr_scheduler import LRSchedulersContainer, build_lr_schedulers
    from torchtitan.components.optimizer import build_optimizers
    from torchtitan.config import LRScheduler

__all__ = [
    "IGNORE_INDEX",
    "BaseDataLoader",
    "BaseLogger",
    "ContainerOf",
    "HuggingFaceTokenizer",
    "LRSchedulersContainer",
    "MetricsProcessor",
    "OptimizersContainer",
    "build_optimizers",
    "stock_schedule",
]


class ContainerOf(OptimizersContainer):
    """TorchTitan's container of one optimizer a model part, of optimizers that are made already."""

    def __init__(
        self, model_parts: list[nn.Module], optimizers: list[torch.optim.Optimizer], defaults: dict[str, Any]
    ) -> None:
        """defaults: as torch's Optimizer has them, of what is hooked to the container."""
        self.model_parts, self.optimizers = model_parts, optimizers
        params = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        if not IS_V03:
            self._validate_length(len(model_parts))
            self._post_init(params, defaults)
            return
        names = {p: clean_name(name) for part in model_parts for name, p in part.named_parameters()}
        for optimizer in optimizers:
            for group in optimizer.param_groups:  # its checkpoints go by them
                group["param_names"] = [names[p] for p in group["params"]]
        self._validate_params(params)
        torch.optim.Optimizer.__init__(self, params, defaults)


def stock_schedule(fields: dict[str, Any], steps: int) -> Callable[[int], float]:
    """TorchTitan's own schedule: optimizer steps taken so far -> factor on the peak learning rate.

    Args:
        fields: those of its table that are set.
        steps: of the whole run.
    """
    any_optimizer = torch.optim.SGD([torch.zeros(1)])  # the function is handed out in a scheduler only
    if IS_V03:
        stock = LRSchedulersContainer.Config(**fields).build(optimizers=[any_optimizer], training_steps=steps)
    else:
        stock = build_lr_schedulers([any_optimizer], LRScheduler(**fields), steps)
    multiplier: Callable[[int], float] = stock.schedulers[0].lr_lambdas[0]
    return multiplier
