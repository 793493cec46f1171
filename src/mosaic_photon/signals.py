"""Signal handlers that raise, and imports: an exception inside an extension module's start can abort the process."""

import os
import threading
from types import FrameType

AGAIN_AFTER_S = 0.05


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
