"""Signal handlers that raise, outside of imports: one inside an extension module's start can abort the process."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_AFTER_S = 0.05


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived; the argument is the signal's number."""


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped inside."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not postponed_by_import(number, frame):
            raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def postponed_by_import(number: int, frame: FrameType | None) -> bool:
    """Whether the signal interrupts an import; it is then sent again a moment later. To be asked before raising.

    Args:
        number, frame: what the signal's handler was called with.
    """
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    if frame is None:
        return False
    timer = threading.Timer(AGAIN_AFTER_S, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()
    return True
