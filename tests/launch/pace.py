"""A Composer callback that lets a small job take its time, so that it lasts without keeping a core busy."""

import time

from composer.core import Callback, State
from composer.loggers import Logger


class Pace(Callback):
    """Sleeps after each batch."""

    def __init__(self, seconds: float = 0.2) -> None:
        self.seconds = seconds

    def batch_end(self, state: State, logger: Logger) -> None:
        time.sleep(self.seconds)
