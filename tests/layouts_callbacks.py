"""A callback with a state of its own, for runs that move between layouts."""

from composer.core import Callback, State
from composer.loggers import Logger


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
