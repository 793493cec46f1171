"""Callbacks of a user's own, for the tests: named in jobs as `recording:Class`."""

from typing import ClassVar

import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist

from mosaic_photon.callbacks import OptimizerMonitor


class Recorder(Callback):
    """Remembers each event with the time at which it saw it."""

    events: ClassVar[list[tuple]] = []
    closed: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.batches = 0

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        stamp = state.timestamp
        times = (stamp.epoch, stamp.batch, stamp.sample, stamp.token, stamp.batch_in_epoch, stamp.sample_in_epoch)
        where = (state.dataloader_label, state.eval_timestamp.batch.value) if event.is_eval else ()
        self.events.append((event.value, *(time.value for time in times), *where))
        self.batches += event is Event.BATCH_END

    def state_dict(self) -> dict:
        return {"batches": self.batches, "pair": (1, 2)}

    def load_state_dict(self, state: dict) -> None:
        assert state["pair"] == (1, 2)
        self.batches = state["batches"]

    def close(self, state: State, logger: Logger) -> None:
        self.closed.append(f"closed after {self.batches}")


class Raiser(Callback):
    """Fails in one event of one step, on one rank."""

    def __init__(self, event: str, batch: int = 1, rank: int = 0) -> None:
        self.event, self.batch, self.rank = event, batch, rank

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if (event.value, state.timestamp.batch.value, dist.get_global_rank()) == (self.event, self.batch, self.rank):
            raise RuntimeError("as it was told to")


class FailingMonitor(OptimizerMonitor):
    """Fails on one rank before the batch's end, where the other ranks reduce over all; or before a validation's."""

    def __init__(self, event: str, batch: int, rank: int) -> None:
        super().__init__(interval=1)
        self.raiser = Raiser(event, batch, rank)

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        self.raiser.run_event(event, state, logger)
        super().run_event(event, state, logger)

    def eval_end(self, state: State, logger: Logger) -> None:
        dist.barrier()


class FailingState(Callback):
    """Fails in giving or taking its state."""

    def __init__(self, event: str) -> None:
        self.event = event

    def state_dict(self) -> dict:
        if self.event == "state_dict":
            raise ValueError("as it was told to")
        return {"a": 1}

    def load_state_dict(self, state: dict) -> None:
        if self.event == "load_state_dict":
            raise KeyError("b")


class Words(Callback):
    """Logs what is no number beside a number."""

    def batch_end(self, state: State, logger: Logger) -> None:
        logger.log_metrics({"words/phase": "warm-up", "words/pair": torch.ones(2), "words/number": torch.ones(())})


class Closing(Callback):
    """Remembers the order in which callbacks are closed; one of them fails."""

    events: ClassVar[list[str]] = []

    def __init__(self, name: str, fails: bool = False) -> None:
        self.name, self.fails = name, fails

    def close(self, state: State, logger: Logger) -> None:
        self.events.append(f"close {self.name}")
        if self.fails:
            raise RuntimeError("as it was told to")

    def post_close(self) -> None:
        self.events.append(f"post_close {self.name}")


class Closing2(Closing):
    """Another name for a second one."""


class Closing3(Closing):
    """And a third."""


class Stopper(Callback):
    """Ends the training after some batches, on one rank."""

    def __init__(self, batches: int, rank: int = 0) -> None:
        self.batches, self.rank = batches, rank

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch == self.batches and dist.get_global_rank() == self.rank:
            state.stop_training()


class Losses(Callback):
    """Logs what the state says of the loss, at the end of every batch and of every validation."""

    def after_loss(self, state: State, logger: Logger) -> None:
        logger.log_metrics({"seen/microbatch_loss": state.loss})

    def batch_end(self, state: State, logger: Logger) -> None:
        logger.log_metrics({"seen/loss": state.loss})
        logger.log_metrics({"seen/perplexity": state.train_metrics["LanguagePerplexity"].compute()})

    def eval_end(self, state: State, logger: Logger) -> None:
        logger.log_metrics({"seen/eval_loss": state.eval_metrics["eval"]["LanguageCrossEntropy"].compute()})


class NotACallback:
    """A class of another kind."""
