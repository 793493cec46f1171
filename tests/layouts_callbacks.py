"""Callbacks for runs in several layouts: one with a state of its own, and one that looks at what others do."""

import gc
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist


class Counter(Callback):
    """Logs how many batches and tokens it has seen since the run's first step, over all resumptions."""

    def __init__(self) -> None:
        self.batches = 0

    def batch_end(self, state: State, logger: Logger) -> None:
        self.batches += 1
        logger.log_metrics({"counted/batches": self.batches, "counted/tokens": state.timestamp.token.value})

    def state_dict(self) -> dict:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict) -> None:
        self.batches = state["batches"]


class Watch(Callback):
    """Logs what other callbacks keep to themselves or change; to be the last of a job's callbacks."""

    def __init__(self) -> None:
        self.kept = self.collected = 0

    def fit_start(self, state: State, logger: Logger) -> None:
        self.collected = full_collections()

    def after_loss(self, state: State, logger: Logger) -> None:
        self.kept += state.outputs.numel()

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        self.collected = full_collections()

    def before_dataloader(self, state: State, logger: Logger) -> None:
        logger.log_metrics({"watch/garbage_collected": full_collections() - self.collected})

    def batch_end(self, state: State, logger: Logger) -> None:
        stopper, spike = (named(state, name) for name in ("EarlyStopper", "KillLossSpike"))
        frozen = [name for name, parameter in state.model.named_parameters() if not parameter.requires_grad]
        metrics = {
            "watch/logits_kept": self.kept,
            "watch/frozen": len({name for names in dist.all_gather_object(frozen) for name in names}),
            "watch/decay": state.optimizers[0].param_groups[0]["weight_decay"],
            "watch/best": float(stopper.best),
            "watch/best_at": stopper.best_occurred.batch.value,
            "watch/spike_window": sum(spike.loss_window) / len(spike.loss_window),
            "watch/spike_window_length": len(spike.loss_window),
        }
        logger.log_metrics(metrics)

    def fit_end(self, state: State, logger: Logger) -> None:
        timer = named(state, "RunTimeoutCallback").timer
        logger.log_metrics({"watch/timer": timer.interval})
        timer.cancel()


def full_collections() -> int:
    """How often all garbage has been collected in this process."""
    return gc.get_stats()[2]["collections"]


def named(state: State, name: str) -> Any:
    """The job's callback whose class, or one of its bases, has this name."""
    return next(one for one in state.callbacks if name in {base.__name__ for base in type(one).__mro__})
