"""The parts that TorchTitan's trainer is put together from: loss, optimizers, schedules, data, metrics."""

from typing import Any

import torch
import torch.nn as nn
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.components.lr_scheduler import LRSchedulersContainer, build_lr_schedulers
from torchtitan.components.metrics import BaseLogger
from torchtitan.components.optimizer import OptimizersContainer, build_optimizers
from torchtitan.components.tokenizer import HuggingFaceTokenizer

__all__ = [
    "IGNORE_INDEX",
    "BaseDataLoader",
    "BaseLogger",
    "ContainerOf",
    "HuggingFaceTokenizer",
    "LRSchedulersContainer",
    "OptimizersContainer",
    "build_lr_schedulers",
    "build_optimizers",
]


class ContainerOf(OptimizersContainer):
    """TorchTitan's container of one optimizer a model part, of optimizers that are made already."""

    def __init__(
        self, model_parts: list[nn.Module], optimizers: list[torch.optim.Optimizer], defaults: dict[str, Any]
    ) -> None:
        """defaults: as torch's Optimizer has them, of what is hooked to the container."""
        self.model_parts, self.optimizers = model_parts, optimizers
        self._validate_length(len(model_parts))
        params = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        self._post_init(params, defaults)
