"""Who does the work: calls of pure functions, a bounded number at a time, by processes of this machine."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Protocol, TypeVar

from mosaic_photon.errors import ConfigError

PR_SET_PDEATHSIG = 1
T = TypeVar("T")
Finished = Callable[[int, Any], object]
"""Told the position of a call and its result as it ends."""


class Executor(Protocol):
    """What does calls. Neither it nor how many do them changes a result."""

    @property
    def workers(self) -> int:
        """How many calls are worked on at a time, now."""

    def run(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], finished: Finished) -> None:
        """Do all calls.

        Raises:
            ConfigError: a worker was killed, time and again, or found a user's mistake.
        """


def in_flight(
    calls: Iterable[tuple[Any, ...]],
    limit: Callable[[], int],
    submit: Callable[[tuple[Any, ...]], T],
    ended: Callable[[list[T]], Iterable[T]],
) -> Iterator[tuple[int, T]]:
    """(position, handle) of each call as it ends; no more of them are begun, or made, than `limit` says."""
    waiting, pending = enumerate(calls), dict[T, int]()
    while True:
        for position, call in islice(waiting, max(0, limit() - len(pending))):
            pending[submit(call)] = position
        if not pending:
            return
        for handle in ended(list(pending)):
            yield pending.pop(handle), handle


class Processes:
    """Forked from this one, so that they have what it has imported; they end when it does."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], finished: Finished) -> None:
        context = multiprocessing.get_context("fork")
        executor = ProcessPoolExecutor(self.workers, context, initializer=_start_worker, initargs=(os.getpid(),))

        def ended(pending: list[Future[Any]]) -> Iterable[Future[Any]]:
            return wait(pending, return_when=FIRST_COMPLETED).done

        try:
            handles = in_flight(calls, lambda: 2 * self.workers, lambda call: executor.submit(function, *call), ended)
            for position, future in handles:
                finished(position, future.result())
        except BrokenProcessPool as error:
            raise ConfigError(
                "a worker process was killed, most likely for want of memory: give fewer --workers. "
                "What is finished is kept; the same command goes on from there"
            ) from error
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # Linux: do not outlive a killed parent
    if os.getppid() != parent:
        os._exit(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
