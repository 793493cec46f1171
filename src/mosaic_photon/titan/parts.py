"""The parts that TorchTitan's trainer is put together from: loss, optimizers, schedules, data, metrics, checkpoints."""

from torchtitan.components.checkpoint import MODEL, AsyncMode, CheckpointManager
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import IGNORE_INDEX, build_cross_entropy_loss
from torchtitan.components.lr_scheduler import LRSchedulersContainer, build_lr_schedulers
from torchtitan.components.metrics import BaseLogger, LoggerContainer, MetricsProcessor
from torchtitan.components.optimizer import (
    OptimizersContainer,
    build_optimizers,
    build_optimizers_with_moe_load_balancing,
)
from torchtitan.components.tokenizer import HuggingFaceTokenizer, build_hf_tokenizer
from torchtitan.components.validate import BaseValidator

__all__ = [
    "IGNORE_INDEX",
    "MODEL",
    "AsyncMode",
    "BaseDataLoader",
    "BaseLogger",
    "BaseValidator",
    "CheckpointManager",
    "HuggingFaceTokenizer",
    "LRSchedulersContainer",
    "LoggerContainer",
    "MetricsProcessor",
    "OptimizersContainer",
    "build_cross_entropy_loss",
    "build_hf_tokenizer",
    "build_lr_schedulers",
    "build_optimizers",
    "build_optimizers_with_moe_load_balancing",
]
