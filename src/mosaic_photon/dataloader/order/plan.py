"""The plan of a run: which samples each of its global batches has, batches counted from 0 over the whole run.

A batch's samples depend on the data config and on where the plan begins, not on ranks or nodes. Nothing of the data is
read, so that any process can ask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.order.deal import Layout, blocks_of_batches
from mosaic_photon.dataloader.order.orders import Orders
from mosaic_photon.errors import ConfigError


@dataclass(frozen=True)
class Origin:
    """Where a plan begins: its global batch `batch` is `epoch` from sample `offset` of its order on."""

    batch: int = 0
    epoch: int = 0
    offset: int = 0
    known: int = 0
    """Batches before it were read of other data; in stages, which count on from `batch` all the same."""

    @property
    def first_known(self) -> int:
        """The first batch that the plan knows."""
        return max(self.batch, self.known)

    def unknown(self, batch: int) -> ConfigError:
        """That a batch comes before it."""
        return ConfigError(
            f"batch {batch} was read before the data were changed, at batch {self.first_known}: they do not tell it"
        )


BEGIN = Origin()
"""Of a run whose data have always been these."""


class Plan(Protocol):
    """What a loader, and who looks into a run, asks a plan."""

    @property
    def global_batch(self) -> int:
        """Samples of a batch."""

    @property
    def origin(self) -> Origin:
        """From its batch on this plan knows what was read: before it, the data were others."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the streams, in the order of their numbers."""

    def place(self, batch: int) -> tuple[int, int]:
        """The epoch of a batch, and how many samples of the epoch come before it.

        Raises:
            ConfigError: the batch comes before the origin, as it does for all that is asked of one.
        """

    def end(self, batch: int) -> int:
        """Up to which batch, excluded, shards may be fetched ahead from `batch` on: the end of its epoch.

        The batch itself where the plan has come to its end.
        """

    def samples(self, batch: int) -> NDArray[np.int64]:
        """The sample ids of a batch in the order of the deal, of shape (global_batch,)."""

    def blocks(self, batch: int, end: int, layout: Layout, done: int = 0) -> Iterator[NDArray[np.int64]]:
        """A rank's sample ids from `batch` to `end`, at most `end(batch)`: many (micro-batches, local_batch).

        Args:
            batch: the first.
            end: the one before which it ends.
            layout: the rank's.
            done: samples of the first batch that have been read already.
        """

    def stream_of(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """The number of the stream of each sample id, of the same shape."""

    def passes(self, batch: int) -> NDArray[np.float64]:
        """How often each stream has been read before a batch, of shape (streams,)."""

    def open(self, batch: int) -> None:
        """Have made beside what the batch needs. Raises ConfigError where there is no room for it."""

    def prepare(self, batch: int) -> None:
        """Have made beside the training what batches soon after this one need."""

    def close(self) -> None:
        """End what is being made."""


@dataclass(frozen=True)
class StaticPlan:
    """Epoch after epoch of Streaming's order; what is left of one, less than a global batch, is not read."""

    orders: Orders
    global_batch: int
    origin: Origin = BEGIN

    def __post_init__(self) -> None:
        """Raises ConfigError where an epoch has less than a batch."""
        if not self.batches_per_epoch:
            raise ConfigError(
                f"an epoch has {self.orders.length} samples, fewer than one global batch of {self.global_batch};"
                " lower training.global_batch_size, or raise epoch_size"
            )

    @property
    def batches_per_epoch(self) -> int:
        return self.orders.length // self.global_batch

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(stream.name for stream in self.orders.order.streams)

    def place(self, batch: int) -> tuple[int, int]:
        origin = self.origin
        after = batch - origin.batch
        if after < 0:
            raise origin.unknown(batch)
        first = max(0, self.orders.length - origin.offset) // self.global_batch
        if after < first:
            return origin.epoch, origin.offset + after * self.global_batch
        epochs, rest = divmod(after - first, self.batches_per_epoch)
        return origin.epoch + 1 + epochs, rest * self.global_batch

    def end(self, batch: int) -> int:
        return batch + (self.orders.length - self.place(batch)[1]) // self.global_batch

    def samples(self, batch: int) -> NDArray[np.int64]:
        epoch, start = self.place(batch)
        return self.orders.get(epoch)[start : start + self.global_batch].astype(np.int64)

    def blocks(self, batch: int, end: int, layout: Layout, done: int = 0) -> Iterator[NDArray[np.int64]]:
        epoch, start = self.place(batch)
        order = self.orders.get(epoch)[: start + (end - batch) * self.global_batch]
        return blocks_of_batches(order, start + done, layout, done)

    def stream_of(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        begins = [stream.first_sample for stream in self.orders.order.streams]
        return np.searchsorted(begins, ids, side="right") - 1

    def passes(self, batch: int) -> NDArray[np.float64]:
        """Exact at the end of an epoch; within one, streams are taken to be read evenly."""
        epoch, start = self.place(batch)
        streams = self.orders.order.streams
        of_an_epoch = [stream.choose / max(1, int(stream.samples_per_shard.sum())) for stream in streams]
        return (epoch + start / self.orders.length) * np.array(of_an_epoch)

    def open(self, batch: int) -> None:
        epoch, _ = self.place(batch)
        self.orders.check_room(epoch)
        self.orders.prepare(epoch)

    def prepare(self, batch: int) -> None:
        epoch, start = self.place(batch)
        if 2 * start > self.orders.length:
            self.orders.prepare(epoch + 1)

    def close(self) -> None:
        self.orders.close()


def origin_of(plan: StaticPlan, batch: int, epoch: int, offset: int) -> Origin:
    """The origin of a run that is at sample `offset` of `epoch` with `batch`, where its state does not tell it."""
    return BEGIN if plan.place(batch) == (epoch, offset) else Origin(batch, epoch, offset)
