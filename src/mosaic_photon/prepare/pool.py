"""Worker processes that end when their parent does, and are not waited for when the user stops the work."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from mosaic_photon.errors import ConfigError

PR_SET_PDEATHSIG = 1


def run_parallel(
    workers: int,
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    finished: Callable[[int], object],
) -> list[Any]:
    """The results of all calls, in order.

    Args:
        finished: told the position of each call as it ends.

    Raises:
        ConfigError: a worker was killed, or found a user's mistake.
    """
    context = multiprocessing.get_context("fork")
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        futures = [executor.submit(function, *call) for call in calls]
        positions = {future: position for position, future in enumerate(futures)}
        for future in as_completed(futures):
            future.result()
            finished(positions[future])
        return [future.result() for future in futures]
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
