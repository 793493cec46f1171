"""SIGTERM and Ctrl-C end a job between two steps, on all ranks at the same one."""

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

import torch
import torch.distributed as dist

from mosaic_photon.signals import postponed_by_import
from mosaic_photon.titan.tools import logger

REPEAT_AFTER_S = 2.0
"""A launcher and a terminal may send the same signal twice at once; only a later one is the user asking again."""
STUCK_AFTER_S = 20.0
"""A main thread in native code for this long in a step, and for two steps' time, waits for a rank that is gone."""
STOPS = (signal.SIGTERM, signal.SIGINT)
PROBE = signal.SIGURG
"""Ignored by default and unused by torch: asks the main thread whether it still runs Python."""


class GracefulStop:
    """Remembers that a signal asked the job to stop, and lets all ranks agree on the step.

    Before `activate` a signal ends the process at once, through its finally-clauses.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._active = False
        self._asked = False
        self._asked_at = 0.0
        self._group: dist.ProcessGroup | None = None  # the default one
        self._flag: torch.Tensor | None = None
        self._work: dist.Work | None = None
        self._in_step = False
        self._begun_at = 0.0
        self._step_s = 0.0
        self._previous = {number: signal.getsignal(number) for number in (*STOPS, PROBE)}
        self._noticed = threading.Event()
        self._install()
        self._watched, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        self._pid: int | None = os.getpid()
        os.register_at_fork(after_in_child=self._leave_to_parent)

    def attach(self, group: dist.ProcessGroup | None) -> None:
        """Let ranks agree in `group`, which must not wait for a device."""
        self._group = group

    def activate(self) -> None:
        """From now on a signal asks for a stop between steps."""
        self._active = True
        self._install()  # Composer, where it was imported since, has put its own handlers

    def begin_step(self) -> None:
        """Start telling the other ranks; overlaps with the step."""
        self._in_step, self._begun_at = True, time.monotonic()
        if dist.get_world_size() == 1:
            return
        self._flag = torch.tensor([int(self._asked), self.signal_number or 0])
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def end_step(self) -> None:
        """What follows, a checkpoint or a validation pass, takes as long as it takes."""
        self._in_step, self._step_s = False, time.monotonic() - self._begun_at

    def agreed(self) -> bool:
        """Whether some rank had asked when the last step began. Collective, and the same on all ranks."""
        if dist.get_world_size() == 1:
            return self._asked
        if self._work is None or self._flag is None:
            return False
        self._in_step = True  # a rank that is gone answers neither
        self._work.wait()
        self._in_step = False
        asked, number = self._flag.tolist()
        self.signal_number = self.signal_number or number or None
        return bool(asked)

    def restore(self) -> None:
        """Give the signals back to whoever had them before."""
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._wakeup.close()
        self._pid = None

    def _leave_to_parent(self) -> None:
        """In a process that was forked, a DataLoader's worker say: a stop is for the parent to see to.

        A terminal sends Ctrl-C to both. What a child handles in Python would wake up the parent's watcher.
        """
        if self._pid is None or self._pid == os.getpid():
            return
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(PROBE, signal.SIG_DFL)

    def _install(self) -> None:
        for number in STOPS:
            signal.signal(number, self._on_signal)
        signal.signal(PROBE, lambda number, frame: self._noticed.set())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self._asked and time.monotonic() - self._asked_at > REPEAT_AFTER_S
        if not self._active or again:
            if postponed_by_import(number, frame):
                return
            sys.exit(128 + number)
        if not self._asked:
            logger.info(
                f"{signal.Signals(number).name}: stopping after this step. The same signal again stops at once."
            )
            self._asked, self._asked_at, self.signal_number = True, time.monotonic(), number

    def _watch(self) -> None:
        """End the process where a signal came and Python cannot handle it: the main thread is stuck in native code."""
        with self._watched:
            while number := self._watched.recv(1):  # empty once `restore` has closed the other end
                if number[0] not in STOPS:  # any signal with a Python handler wakes this thread: a child's end, say
                    continue
                self._noticed.clear()
                os.kill(os.getpid(), PROBE)
                patience = max(STUCK_AFTER_S, 2 * self._step_s) if self._active else REPEAT_AFTER_S
                if not self._noticed.wait(patience) and (self._in_step or not self._active):
                    logger.error(
                        "Stopped at once: the main thread does not answer; it may wait for a rank that is gone."
                    )
                    os._exit(128 + number[0])
