"""Runs Composer callbacks inside TorchTitan's loop: Composer's events in their order, failures on all ranks together.

Nothing of Composer is imported by a job without callbacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from mosaic_photon.callbacks.state_text import decode_state, encode_state
from mosaic_photon.titan.interface import INSIDE_MICRO_BATCH
from mosaic_photon.titan.tools import logger as console

if TYPE_CHECKING:
    from composer.core import Callback, State
    from composer.loggers import Logger

    from mosaic_photon.callbacks.job_state import JobState
    from mosaic_photon.titan.interface import RunningTrainer

STATE_KEY = "composer_callbacks"


@dataclass(frozen=True)
class Moment:
    """What happens at one event of the trainer, from the first field to the last."""

    events: tuple[str, ...]
    """Composer's events that callbacks get, once `JobState` has taken in what the trainer says with the event."""
    before: tuple[str, ...] = ()
    """Those that come before it has."""
    agree: bool = False
    """Whether ranks agree at its end on a stop, and on whether a callback has failed on one of them.

    Before the callbacks of `batch_end` and `eval_end` they agree on failures too: callbacks reduce over ranks there,
    and a failed one is not run again on its rank.
    """


MOMENTS = {
    "fit_start": Moment(("after_load", "fit_start"), agree=True),
    "batch_start": Moment(("after_dataloader", "batch_start", "before_train_batch")),
    "batch_end": Moment(("batch_end",), agree=True),
    "eval_batch_start": Moment(("eval_batch_start", "eval_before_forward")),
    "eval_batch_end": Moment(("eval_batch_end",), before=("eval_after_forward",)),
    "eval_end": Moment(("eval_end",), agree=True),
    "eval_after_all": Moment(("eval_after_all",), agree=True),
    "fit_end": Moment(("fit_end",), agree=True),
}
"""The trainer's events that are more than one of Composer's by the same name. `before_dataloader` may begin an
iteration and an epoch first, and `batch_checkpoint` end an epoch."""


class CallbackError(RuntimeError):
    """A callback raised; the message says which, in which event, at which step and rank, and what."""


class CallbackHost:
    """The callbacks of one job. Without callbacks every method does nothing.

    Args:
        callbacks: name -> callback, as `registry.build_callbacks` makes them.
    """

    def __init__(self, callbacks: Mapping[str, Callback]) -> None:
        self.callbacks = dict(callbacks)
        self.stop_requested = False
        """A callback has asked to stop after the current step. The same on all ranks."""
        self._job: JobState | None = None
        self._state: State | None = None
        self._logger: Logger | None = None
        self._group: dist.ProcessGroup | None = None
        self._checkpoint_due = False
        """A batch has ended, and callbacks have not had its `batch_checkpoint` yet."""
        self._failures: dict[str, CallbackError] = {}
        """Of callbacks on this rank, by name. With several ranks they wait for the next agreement."""
        self._saved = "{}"

    def attach(self, trainer: RunningTrainer, group: dist.ProcessGroup | None) -> None:
        """Show the callbacks the finished trainer, and run `init`. Collective.

        Args:
            trainer: the job's.
            group: all ranks on CPUs, None with one process.

        Raises:
            CallbackError: a callback failed in `init`.
        """
        if not self.callbacks:
            return
        from composer.loggers import Logger, LoggerDestination

        from mosaic_photon.callbacks.composer_view import TitanDestination
        from mosaic_photon.callbacks.job_state import JobState

        self._group = group
        own = [callback for callback in self.callbacks.values() if isinstance(callback, LoggerDestination)]
        titan = TitanDestination(trainer.metrics_processor.logger, dist.get_rank() == 0)
        self._job = JobState(trainer, list(self.callbacks.values()), self._group)
        self._state = self._job.state
        self._logger = Logger(self._state, [titan, *own])
        trainer.optimizers.register_step_pre_hook(lambda *_: self.fire("after_train_batch"))
        self._run("init", "before_load")
        self._agree(on_stop=False)

    def wants_inside(self) -> list[str]:
        """Names of the callbacks that do something between a micro-batch's passes."""
        if not self.callbacks:
            return []
        from composer.core import Callback

        events = ("run_event", *INSIDE_MICRO_BATCH)
        return [
            name
            for name, callback in self.callbacks.items()
            if any(getattr(type(callback), event) is not getattr(Callback, event) for event in events)
        ]

    def fire(self, event: str, **facts: Any) -> None:
        """Run one event of the training loop.

        Args:
            event: a Composer event's name; MOMENTS says what more comes with some.
            **facts: what has become known: batch, outputs, loss.

        Raises:
            CallbackError: where ranks agree, on all of them; with one process at once.
        """
        if self._job is None:
            return
        if event == "batch_checkpoint":
            self._end_batch()
            return
        moment = MOMENTS.get(event) or Moment((event,))
        self._run(*moment.before)
        if event == "eval_end":
            self._agree()
        self._job.update(event, facts)
        if event == "batch_end":
            self._checkpoint_due = True
            if self._job.end_batch(failed=bool(self._failures)):
                self._raise_together()
        if event == "before_dataloader":
            self._run(*self._job.start_events())
        self._run(*moment.events)
        self._job.release(event)
        if moment.agree:
            self._agree()

    def state_dict(self) -> dict[str, str]:
        """The callbacks' states and the clock, as one JSON string under one key. Rank 0's copy counts."""
        if self._job is None:
            return {STATE_KEY: self._saved}
        states = {}
        for name, callback in self.callbacks.items():
            try:
                state = callback.state_dict()
            except Exception as error:
                raise self._failure(name, "state_dict", error) from error
            states[name] = encode_state(name, state)
        return {STATE_KEY: json.dumps({"clock": self._job.clock(), "callbacks": states})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each callback its state back; one that the checkpoint does not know starts anew."""
        self._saved = state_dict.get(STATE_KEY, "{}")
        saved = json.loads(self._saved)
        if self._job is None or not saved:
            return
        self._job.set_clock(saved["clock"])
        for name, callback in self.callbacks.items():
            state = decode_state(saved["callbacks"].get(name))
            if not state:
                continue
            try:
                callback.load_state_dict(state)
            except Exception as error:
                raise self._failure(name, "load_state_dict", error) from error

    def close(self) -> None:
        """Run `close` of every callback, then `post_close`, after success and after errors. Safe to call twice."""
        if self._state is None:
            return
        state, self._state, self._job = self._state, None, None
        closed = []
        for name, callback in self.callbacks.items():
            with _failures_logged(name, "close"):
                callback.close(state, self._logger)
                closed.append(name)
        for name in closed:  # Composer's order: a callback that failed in the first is left out of the second
            with _failures_logged(name, "post_close"):
                self.callbacks[name].post_close()

    def _end_batch(self) -> None:
        """What follows a batch and its checkpoint and validation: `batch_checkpoint`, and an epoch's end."""
        assert self._job is not None
        if self._checkpoint_due:
            self._checkpoint_due = False
            self._run("batch_checkpoint")
        if self._job.end_epoch():
            self._run("epoch_end", "epoch_checkpoint")
            self._agree()

    def _run(self, *events: str) -> None:
        """Run events on each callback; one that failed is not run again, so that the others stay in step over ranks."""
        from composer.core import Event

        for name in events:
            for key, callback in self.callbacks.items():
                if key in self._failures:
                    continue
                try:
                    callback.run_event(Event(name), self._state, self._logger)
                except Exception as error:
                    self._fail(key, name, error)

    def _fail(self, key: str, event: str, error: Exception) -> None:
        failure = self._failure(key, event, error)
        if self._group is None:
            raise failure from error
        failure.__cause__ = error
        console.error(f"{failure}. The job ends with this step.", exc_info=error)
        self._failures[key] = failure

    def _failure(self, key: str, event: str, error: Exception) -> CallbackError:
        assert self._job is not None
        where = f" on rank {dist.get_rank()}" if self._group is not None else ""
        return CallbackError(
            f"callback {key!r} failed in {event} at step {self._job.step}{where}: {type(error).__name__}: {error}"
        )

    def _agree(self, on_stop: bool = True) -> None:
        """Let all ranks know whether one of them wants to stop, if `on_stop`, or has a failure."""
        assert self._job is not None
        wants_stop = on_stop and self._job.wants_stop()
        if self._group is not None:
            flags = torch.tensor([wants_stop, bool(self._failures)], dtype=torch.int32)
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
            wants_stop = bool(flags[0])
            if flags[1]:
                self._raise_together()
        if wants_stop and not self.stop_requested:
            self.stop_requested = True
            self._job.stop()

    def _raise_together(self) -> None:
        """Raise the lowest rank's failure on all ranks."""
        mine = next(iter(self._failures.values()), None)
        messages: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(messages, str(mine) if mine else None, group=self._group)
        if mine is not None:
            raise mine
        raise CallbackError(next(message for message in messages if message))


@contextmanager
def _failures_logged(name: str, event: str) -> Iterator[None]:
    """Log an exception and go on: the other callbacks are to be closed, and an error under way to be seen."""
    try:
        yield
    except Exception:
        console.exception(f"Callback {name!r} failed in {event}.")
