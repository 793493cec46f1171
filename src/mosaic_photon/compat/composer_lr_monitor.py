"""Composer's LRMonitor logs, at a step's end, the learning rate that the schedule has set for the next step.

No upstream issue. Composer 0.32.1. Delete when LRMonitor logs what the step was made with, as TorchTitan's `lr` is.
"""

from composer.callbacks import LRMonitor as ComposersLRMonitor
from composer.core import State
from composer.loggers import Logger


class LRMonitor(ComposersLRMonitor):
    """Logs `lr-OPTIMIZER/groupI`, the learning rate of the step."""

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """The gradients are there; the schedule has not moved on yet."""
        del logger
        self._rates = {
            f"lr-{type(optimizer).__name__}/group{index}": float(group["lr"])
            for optimizer in state.optimizers
            for index, group in enumerate(optimizer.param_groups)
        }

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log under the step's number."""
        del state
        logger.log_metrics(self._rates)
