"""Bytes that a job waits for before its first step: counted where the work is done, shown by `report/console.py`."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class Count:
    """Of one kind of work of this process."""

    what: str
    """What is done with the bytes, in a participle."""
    done: int = 0
    total: int = 0
    """0: not known."""
    since: float | None = None
    """When it began, by the monotonic clock; None: it has not."""

    def begin(self, total: int = 0) -> None:
        """The work begins, or `total` bytes more of it."""
        self.total += total
        if self.since is None:
            self.since = time.monotonic()

    @property
    def is_under_way(self) -> bool:
        return self.since is not None and self.done != self.total


verified, fetched = Count("verified"), Count("fetched")


def under_way() -> Count | None:
    """What is being done; None: nothing that is counted."""
    return next((count for count in (verified, fetched) if count.is_under_way), None)
