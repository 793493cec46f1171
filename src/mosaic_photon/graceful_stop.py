"""SIGTERM and Ctrl-C end a job between two steps, on all ranks at the same one."""

import signal
import sys
import time
from types import FrameType

import torch
import torch.distributed as dist
from torchtitan.tools.logging import logger

REPEAT_AFTER_S = 2.0
"""A launcher and a terminal may send the same signal twice at once; only a later one is the user asking again."""


class GracefulStop:
    """Remembers that the job was asked to stop, by a signal or by a callback, and lets all ranks agree on the step.

    Outside the training loop (`active` False) a signal ends the process at once, through its finally-clauses.
    """

    def __init__(self) -> None:
        self.active = False
        self.signal_number: int | None = None
        self._asked = False
        self._asked_at = 0.0
        self._flag: torch.Tensor | None = None
        self._work: dist.Work | None = None
        self._group: dist.ProcessGroup | None = None
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self._previous:
            signal.signal(number, self._on_signal)

    def request(self) -> None:
        """Ask for a stop after the current step, from this rank."""
        self._asked = True

    def begin_step(self) -> None:
        """Start telling the other ranks; overlaps with the step."""
        if dist.get_world_size() == 1:
            return
        if self._group is None:  # the CPU's own group: asking must not wait for a device
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        self._flag = torch.tensor([int(self._asked), self.signal_number or 0])
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def agreed(self) -> bool:
        """Whether some rank had asked when the last step began. Collective, and the same on all ranks."""
        if dist.get_world_size() == 1:
            return self._asked
        if self._work is None or self._flag is None:
            return False
        self._work.wait()
        asked, number = self._flag.tolist()
        self.signal_number = self.signal_number or number or None
        return bool(asked)

    def restore(self) -> None:
        """Give the signals back to whoever had them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self._asked and time.monotonic() - self._asked_at > REPEAT_AFTER_S
        if not self.active or again:
            sys.exit(128 + number)
        if not self._asked:
            logger.info(
                f"{signal.Signals(number).name}: stopping after this step. The same signal again stops at once."
            )
            self._asked, self._asked_at, self.signal_number = True, time.monotonic(), number
