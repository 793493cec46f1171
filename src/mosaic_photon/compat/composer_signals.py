"""Importing Composer replaces the handlers of SIGTERM and SIGINT (composer/core/engine.py), and with them a clean stop.

No upstream issue. Delete when Composer installs its handlers in its Trainer instead of on import.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

NEEDED = "mosaicml"


@contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Wrap an import that may pull in Composer; the handlers are afterwards what they were before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
