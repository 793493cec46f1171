"""Watches that each step's loss and gradient norm are finite, so that no ruined weights are saved."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mosaic_photon.errors import NotFiniteError
from mosaic_photon.report import recorder
from mosaic_photon.report.record import SKIP
from mosaic_photon.titan.interface import PassedOverError
from mosaic_photon.titan.layouts import whole
from mosaic_photon.titan.tools import device_type, logger

MOST_IN_A_ROW = 10
"""Steps that `skip` passes over before it takes the weights, or the data from here on, for what is wrong."""


class SkippedStepError(PassedOverError):
    """The step's numbers are not finite."""


@dataclass
class Step:
    """One step's numbers on their way to the host."""

    number: int
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
            optimizer's, so the host waits for the device once in each.
        replicas: ranks that compute the same loss: the tensor-parallel degree.
        how_to_go_on: what the message says at its end.
    """

    def __init__(self, rule: str, replicas: int, how_to_go_on: Callable[[], str]) -> None:
        self.rule = rule
        self.replicas = replicas
        self.how_to_go_on = how_to_go_on
        self.skipped = self.in_a_row = 0
        self._losses: list[Tensor] = []
        self._unread: deque[Step] = deque()

    def begin(self) -> None:
        """A step begins."""
        self._losses = []

    def add(self, loss: Tensor) -> None:
        """This rank's share of the mean loss, of one micro-batch. Ranks without the loss add nothing."""
        self._losses.append(whole(loss.detach()))

    def look(self, step: int, samples: Callable[[], str], norm: Tensor) -> None:
        """Note a step's numbers, when its gradients are clipped and before the optimizer's step. Collective.

        Args:
            step: its number.
            samples: tells what its batch was made of, for the message.
            norm: scalar: the norm of the gradients, of all ranks or of this rank's; what is not finite on one rank is
                not on any, as the ranks' are added.

        Raises:
            SkippedStepError: with "skip", the numbers are not finite.
            NotFiniteError: as `check`; or the step would be the tenth in a row to be skipped.
        """
        if self.rule == "ignore":
            return
        loss = torch.stack(self._losses).sum() if self._losses else norm.new_zeros(())
        world = dist.get_world_size()
        shares = (
            loss / self.replicas,
            norm.detach() / world,
        )  # with training.enable_cpu_offload the norm is on the CPU
        numbers = torch.stack([share.to(device_type, torch.float32) for share in shares])
        if world > 1:
            dist.all_reduce(numbers)
        self._unread.append(Step(step, samples, numbers.to("cpu", non_blocking=True), event_on(numbers.device)))
        if self.rule == "skip":
            self._skip(self._unread.pop())

    def check(self, before: int) -> None:
        """Read the numbers of the steps before this one.

        Raises:
            NotFiniteError: some are not finite.
        """
        while self._unread and self._unread[0].number < before:
            step = self._unread.popleft()
            if not step.is_finite():
                raise NotFiniteError(f"{step}. Nothing of it is saved. {self.how_to_go_on()}")

    def _skip(self, step: Step) -> None:
        if step.is_finite():
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        loss, norm = step.read()
        recorder.event(SKIP, step.number, why="nonfinite", samples=step.samples(), loss=loss, grad_norm=norm)
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
