"""Watches each step's loss and gradient norm, so that no ruined weights are saved, and asks guards about the step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from mosaic_photon.errors import NotFiniteError, SpikesError
from mosaic_photon.report import recorder
from mosaic_photon.report.record import SKIP
from mosaic_photon.titan.interface import PassedOverError
from mosaic_photon.titan.layouts import whole
from mosaic_photon.titan.tools import device_type, logger

MOST_IN_A_ROW = 10
"""Steps that `skip` passes over before it takes the weights, or the data from here on, for what is wrong."""


class SkippedStepError(PassedOverError):
    """The step's numbers are not finite, or a guard holds it back."""


@runtime_checkable
class Guard(Protocol):
    """A callback that may hold back optimizer steps, as `callbacks.SpikeGuard`; alike on all ranks."""

    has_veto: bool
    """It is asked."""

    def judge(self, step: int, batch: int, loss: float, norm: float) -> str | None:
        """Why a step makes no optimizer step, in words; None where it does."""
        ...

    def repeated(self) -> Sequence[Any]:
        """The steps of late, each with `step` and `batch`, where they are too many for the job to go on."""
        ...


@dataclass
class Step:
    """One step's numbers on their way to the host."""

    number: int
    batch: int
    """The plan's, counted from 1."""
    samples: Callable[[], str]
    """What its batch was made of, in words."""
    numbers: Tensor
    """On the host: the global mean loss and the gradient norm, there once `arrived` is."""
    arrived: torch.Event | None
    """None where there is no device to wait for."""

    def read(self) -> tuple[float, float]:
        """The loss and the gradient norm; waits for the device until this step's are there, and no longer."""
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, norm = self.numbers.tolist()
        return loss, norm

    def is_finite(self) -> bool:
        return all(map(math.isfinite, self.read()))

    def __str__(self) -> str:
        loss, norm = self.read()
        return f"Step {self.number} has loss {loss:g} and gradient norm {norm:g} ({self.samples()})"


class FiniteSteps:
    """Each step's loss and gradient norm, read a step later: the device has them by then, and always has work.

    Args:
        rule: `[mosaic] nonfinite`: "stop", "skip" or "ignore". To skip a step its numbers must be read before the
            optimizer's, so the host waits for the device once in each; so it does where there are guards, once for all.
        replicas: ranks that compute the same loss: the tensor-parallel degree.
        how_to_go_on: what the message says at its end.
        guards: judge each step before the rule does; what is not finite they hold back.
        how_to_rewind: the flags that go on from before these steps of a guard's without their batches.
    """

    def __init__(
        self,
        rule: str,
        replicas: int,
        how_to_go_on: Callable[[], str],
        guards: Sequence[Guard] = (),
        how_to_rewind: Callable[[Sequence[Any]], list[str]] = lambda steps: [],
    ) -> None:
        self.rule = rule
        self.replicas = replicas
        self.how_to_go_on = how_to_go_on
        self.guards, self.how_to_rewind = guards, how_to_rewind
        self.skipped = self.in_a_row = 0
        self._losses: list[Tensor] = []
        self._unread: deque[Step] = deque()

    def begin(self) -> None:
        """A step begins."""
        self._losses = []

    def add(self, loss: Tensor) -> None:
        """This rank's share of the mean loss, of one micro-batch. Ranks without the loss add nothing."""
        self._losses.append(whole(loss.detach()))

    def look(self, step: int, batch: int, samples: Callable[[], str], norm: Tensor) -> None:
        """Note a step's numbers, when its gradients are clipped and before the optimizer's step. Collective.

        Args:
            step: its number.
            batch: the number of the plan's batch that it has taken, from 1.
            samples: tells what its batch was made of, for the message.
            norm: scalar: the norm of the gradients, of all ranks or of this rank's; what is not finite on one rank is
                not on any, as the ranks' are added.

        Raises:
            SkippedStepError: with "skip", the numbers are not finite; or a guard holds the step back.
            NotFiniteError: as `check`; or the step would be the tenth in a row to be skipped.
            SpikesError: a guard has held back too many.
        """
        if self.rule == "ignore" and not self.guards:
            return
        loss = torch.stack(self._losses).sum() if self._losses else norm.new_zeros(())
        world = dist.get_world_size()
        shares = loss / self.replicas, norm.detach() / world  # with training.enable_cpu_offload one is on the CPU
        numbers = torch.stack([share.to(device_type, torch.float32) for share in shares])
        if world > 1:
            dist.all_reduce(numbers)
        numbers, arrived = numbers.to("cpu", non_blocking=True), event_on(numbers.device)
        looked_at = Step(step, batch, samples, numbers, arrived)
        if self.guards:
            self._ask_guards(looked_at)
        if self.rule == "skip":
            self._skip(looked_at)
        elif self.rule == "stop":
            self._unread.append(looked_at)

    def check(self, before: int) -> None:
        """Read the numbers of the steps before this one.

        Raises:
            NotFiniteError: some are not finite.
        """
        while self._unread and self._unread[0].number < before:
            step = self._unread.popleft()
            if not step.is_finite():
                raise NotFiniteError(f"{step}. Nothing of it is saved. {self.how_to_go_on()}")

    def _ask_guards(self, step: Step) -> None:
        for guard in self.guards:
            why = guard.judge(step.number, step.batch, *step.read())
            if why is None:
                continue
            self._record(step, why)
            if late := guard.repeated():
                steps = ", ".join(str(one.step) for one in late)
                raise SpikesError(
                    f"{step}: {why}. It is one of {len(late)} steps of late that made no optimizer step ({steps}), "
                    "more than max_skips. If nothing is wrong with their data, the level has changed: raise "
                    "deviations, or leave the guard out.",
                    self.how_to_rewind(late),
                )
            self.skipped += 1
            if dist.get_rank() == 0:
                logger.warning(f"{step}: {why}. It makes no optimizer step ({self.skipped} held back in this run).")
            raise SkippedStepError

    def _record(self, step: Step, why: str) -> None:
        loss, norm = step.read()
        recorder.event(SKIP, step.number, why=why, samples=step.samples(), loss=loss, grad_norm=norm)

    def _skip(self, step: Step) -> None:
        if step.is_finite():
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        self._record(step, "nonfinite")
        if self.in_a_row == MOST_IN_A_ROW:
            raise NotFiniteError(
                f"{step}, for the {MOST_IN_A_ROW}th time in a row; none of them made an optimizer step. "
                f"{self.how_to_go_on()}"
            )
        if dist.get_rank() == 0:
            logger.warning(
                f"{step}: it makes no optimizer step ({self.skipped} skipped in this run, {self.in_a_row} in a "
                f"row; {MOST_IN_A_ROW} in a row stop the job)."
            )
        raise SkippedStepError


def event_on(device: torch.device) -> torch.Event | None:
    """An event after all that the device has been given; None for the CPU."""
    if device.type == "cpu":
        return None
    event: torch.Event = torch.get_device_module(device).Event()
    event.record()
    return event
