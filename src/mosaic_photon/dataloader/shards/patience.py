"""An outage of a remote is ridden out: who needs a file waits for it, says so, and gives up in good time.

`[mosaic] download_patience_seconds` is how long. The other ranks meanwhile wait in a collective, which TorchTitan ends
after `comm.train_timeout_seconds`; so it is at most 0.8 of that.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mosaic_photon.dataloader.shards.index import LOCKS, DataError
from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    from mosaic_photon.dataloader.shards.fetch import Source
    from mosaic_photon.job.tables import MosaicJobConfig

logger = logging.getLogger(__name__)
T = TypeVar("T")
DEFAULT_S = 300.0
SHARE_OF_TIMEOUT = 0.8
SAY_EVERY_S = 15.0
_last_report: dict[Path, float] = {}
LONGEST_PAUSE_S = 5.0
"""Of who waits, until the next attempt; what is fetched ahead may take three times as long."""


class Outage(DataError):
    """The remote did not answer, and may do so later. The message says what was asked for and what happened."""

    def __init__(self, message: str, heard: float | None = None) -> None:
        super().__init__(message)
        self.heard = heard
        """When something last came from the remote, by the monotonic clock; None: it did not answer at all."""


def patience_of(job: MosaicJobConfig, world_size: int) -> float:
    """Seconds that a rank waits for a remote that does not answer.

    Raises:
        ConfigError: what the job says is negative, or is more than the ranks that wait for this one are given.
    """
    given = job.mosaic.download_patience_seconds
    if given is not None and given < 0:
        raise ConfigError(f"mosaic.download_patience_seconds = {given}: must be at least 0.")
    if world_size == 1:
        return DEFAULT_S if given is None else given
    name = min(("train_timeout_seconds", "init_timeout_seconds"), key=lambda name: getattr(job.comm, name))
    timeout = getattr(job.comm, name)
    longest = SHARE_OF_TIMEOUT * timeout
    if given is not None and given > longest:
        raise ConfigError(
            f"mosaic.download_patience_seconds = {given:g}: a rank that waits for its data for so long is not awaited"
            f" by the others, as comm.{name} = {timeout} ends the job before; set it to at most {longest:g}, or"
            f" comm.{name} to at least {given / SHARE_OF_TIMEOUT:g}."
        )
    return min(DEFAULT_S, longest) if given is None else given


def patiently(source: Source, attempt: Callable[[Source], T]) -> T:
    """The result of `attempt`, made anew after each Outage, with back-off, until the source's patience is at an end.

    Args:
        attempt: is given the source with what time is left as its `timeout`, if that is less. Who has no patience makes
            one attempt with the whole time-out.

    Raises:
        Outage: it did not end in time.
    """
    begun, pause, outages = time.monotonic(), 1.0, 0
    while True:
        left = begun + source.patience - time.monotonic()
        try:
            result = attempt(
                replace(source, timeout=min(source.timeout, max(left, 1.0))) if source.patience else source
            )
        except Outage as outage:
            if not outages:
                begun = outage.heard or begun  # until then it did answer
            outages += 1
            waited = time.monotonic() - begun
            if waited >= source.patience:
                raise _gave_up(source, outage, waited) from outage
            say(source, f"{outage}; waiting for it, {waited:.0f} of at most {source.patience:.0f} s so far")
            time.sleep(min(pause * random.uniform(0.5, 1.0), source.patience - waited))
            pause = min(2 * pause, LONGEST_PAUSE_S)
            continue
        if outages:
            logger.warning(f"{source.remote}: answers again after {time.monotonic() - begun:.0f} s")
        return result


def say(source: Source, what: str, mark: str = "waits") -> None:
    """Warn, once in 15 s for all processes of the node that say something under this mark."""
    file = source.folder / LOCKS / mark
    last = _last_report.get(file, 0.0)
    with suppress(OSError):
        last = max(last, file.stat().st_mtime)
    if time.time() - last < SAY_EVERY_S:
        return
    _last_report[file] = time.time()
    with suppress(OSError):  # a folder that is not there yet, or cannot be written
        file.touch()
    logger.warning(what)


def _gave_up(source: Source, outage: Outage, waited: float) -> Outage:
    if not source.patience:
        return outage
    return Outage(f"{outage}; waited for {waited:.0f} s (mosaic.download_patience_seconds)")
