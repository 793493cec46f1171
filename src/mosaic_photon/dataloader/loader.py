"""The loaders that TorchTitan gets: an endless one for training that knows where it is, a finite one for validation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.order.deal import Layout, blocks_of_batches, blocks_of_padded_batches, usable_samples
from mosaic_photon.dataloader.order.orders import Orders
from mosaic_photon.dataloader.progress import Progress, dump_state, fingerprint_of, load_state
from mosaic_photon.dataloader.shards.ahead import FetchAhead, ReadAhead
from mosaic_photon.dataloader.shards.node_folder import node_folder
from mosaic_photon.dataloader.tokens import MicroBatch
from mosaic_photon.errors import ConfigError

logger = logging.getLogger(__name__)

STATE_KEY = "mosaic_dataloader"
BATCHES_AHEAD = 4
MakeBatch = Callable[[NDArray[np.int64]], MicroBatch]
Workers = Callable[[Iterator[NDArray[np.int64]]], Generator[MicroBatch, None, None]]


@dataclass(frozen=True)
class BatchedDataset:
    """A dataset and how to make batches of it."""

    dataset: ShardedDataset
    make_batch: MakeBatch
    """From sample ids to a micro-batch, in this process."""
    length: Callable[[int], int]
    """Tokens of a sample, by its id, without the padding behind them."""
    fixed_length: bool = False
    """All samples are stored with as many tokens."""
    workers: Workers | None = None
    """From an iterator of sample ids to one of micro-batches, through worker processes. None: no workers."""
    pin_memory: bool = False
    node_folder: str = ""
    """`[mosaic] node_folder`, where orders are kept that are too large for each rank to make."""

    def orders(self, batch: int) -> Orders:
        """The orders of epochs in batches of so many samples. Raises ConfigError if the settings make no epoch."""
        return Orders(self.dataset.order(batch), lambda: node_folder(self.node_folder))

    def shards_of(self, blocks: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
        """The shard of each sample of each block; rows that fill up a batch, with ids below 0, are left out."""
        return (self.dataset.locate(ids[ids >= 0])[0] for ids in blocks)


@dataclass(frozen=True)
class StreamSummary:
    """One stream of an epoch."""

    name: str
    samples: int
    """Samples drawn per epoch."""
    tokens: int
    """Target positions per epoch."""
    share: float
    """Of all samples of an epoch."""


@dataclass(frozen=True)
class EpochSummary:
    """What the table at the start of a job shows of the data."""

    streams: tuple[StreamSummary, ...]
    steps_per_epoch: int


class DataSpecDataLoader:
    """Endless micro-batches `({"input": int64 [B, S]}, labels int64 [B, S])`; labels shifted, ignored ones -100.

    The state is one JSON string, equal on all ranks, that any data-parallel size can go on from.
    """

    def __init__(self, data: BatchedDataset, layout: Layout, seq_len: int, allow_data_change: bool = False) -> None:
        """Raises ConfigError if an epoch does not fill one global batch."""
        by_device = data.dataset.batching_method == "device_per_stream"
        unit = layout.local_batch if by_device else 1
        # A batch of Streaming's is a global batch: what it promises of a batch then holds for every optimizer step.
        self.orders = data.orders(layout.local_batch if by_device else layout.global_batch)
        self.data, self.layout, self.seq_len = data, dataclasses.replace(layout, unit=unit), seq_len
        self.progress = self.begin = Progress()
        """`begin` is where the job goes on, known before its checkpoint is loaded."""
        self._allow_data_change = allow_data_change
        self.fingerprint = fingerprint_of(data.dataset, layout.global_batch, layout.local_batch)
        self._running: Iterator[tuple[MicroBatch, int]] | None = None
        self._fetch: FetchAhead | None = None
        self.summary = self._summarize()

    def __iter__(self) -> Iterator[MicroBatch]:
        """Go on from `progress`. A second call ends the iteration of the first."""
        self._stop_reading()
        running = self._running = self._read()
        samples = self.layout.local_batch * self.layout.dp_world_size
        for batch, epoch_samples in running:
            self.progress = self.progress.advance(samples, samples * self.seq_len, epoch_samples)
            yield batch

    def take_part(self, dp_rank: int, seats: tuple[int, ...]) -> None:
        """From the next iteration on this is the loader of data-parallel rank `dp_rank`; `seats` as in Layout."""
        self.layout = dataclasses.replace(self.layout, dp_rank=dp_rank, seats=seats)

    def add_loss_tokens(self, count: int) -> None:
        """Count `count` target positions, summed over all ranks, as seen by the loss. Call it alike on all ranks."""
        self.progress = dataclasses.replace(self.progress, loss_tokens=self.progress.loss_tokens + count)

    def describe(self, begin: Progress, most: int = 8) -> str:
        """The samples of the step that began at `begin`, as numbers within their streams, at most `most` a stream."""
        dataset, first = self.data.dataset, begin.samples_in_epoch
        ids = np.sort(self.orders.get(begin.epoch)[first : first + self.layout.global_batch])
        of = np.searchsorted(dataset.sample_offset_per_stream, ids, side="right") - 1
        parts, names = [], dataset.stream_names()
        for number in np.unique(of):
            numbers = (ids[of == number] - dataset.sample_offset_per_stream[number]).tolist()
            more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
            parts.append(f"stream {names[number]!r}, samples {', '.join(map(str, numbers[:most]))}{more}")
        return "; ".join(parts)

    def state_dict(self) -> dict[str, str]:
        """What has been handed to the trainer so far, under one key."""
        return {STATE_KEY: dump_state(self.progress, self.fingerprint)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was saved. Raises ConfigError if the data config has changed the order of samples."""
        if not state_dict:
            return
        if STATE_KEY not in state_dict:
            raise ConfigError("the checkpoint was written with another data loader and does not say where its data is")
        self.progress, difference = load_state(state_dict[STATE_KEY], self.fingerprint, self._allow_data_change)
        self._stop_reading()
        if difference:
            if not usable_samples(self.orders.length, self.progress.samples_in_epoch, self.layout):
                self.progress = dataclasses.replace(self.progress, epoch=self.progress.epoch + 1, samples_in_epoch=0)
            logger.warning(f"Going on with a changed data config (checkpoint -> now):\n{difference}")

    def close(self) -> None:
        """Stop threads and workers, close files. The loader can be iterated again."""
        self._stop_reading()
        if self._fetch is not None:
            self._fetch.close()
            self._fetch = None
        self.orders.close()
        self.data.dataset.reader.close()
        self.data.dataset.cache.close()

    def _read(self) -> Iterator[tuple[MicroBatch, int]]:
        """Micro-batches from `progress` on, each with the samples of its epoch."""
        if self.data.workers is None:
            batches = ((self._made(ids), epoch_samples) for ids, epoch_samples in self._plan())
            return ReadAhead(batches, BATCHES_AHEAD)
        self.close()  # threads and connections go neither through a fork nor through a spawn
        read = _through_workers(self.data.workers, self._plan())
        return ((self._pinned(batch), epoch_samples) for batch, epoch_samples in read)

    def _made(self, ids: NDArray[np.int64]) -> MicroBatch:
        return self._pinned(self.data.make_batch(ids))

    def _pinned(self, batch: MicroBatch) -> MicroBatch:
        inputs, labels = batch
        if self.data.pin_memory:
            return {name: tensor.pin_memory() for name, tensor in inputs.items()}, labels.pin_memory()
        return batch

    def _plan(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        """The rank's sample ids of each micro-batch from `progress` on, endless, with the samples of its epoch."""
        epoch, start = self.progress.epoch, self.progress.samples_in_epoch
        while True:
            order = self.orders.get(epoch)
            usable, position = usable_samples(len(order), start, self.layout), 0
            fetch, asked = self._fetch_ahead(order, start), False
            for ids in chain.from_iterable(blocks_of_batches(order, start, self.layout)):
                if fetch is not None:
                    fetch.advance(position)
                yield ids, start + usable
                position += len(ids)
                if not asked and 2 * (start + position * self.layout.dp_world_size) > len(order):
                    self.orders.prepare(epoch + 1)
                    asked = True
            epoch, start = epoch + 1, 0

    def _fetch_ahead(self, order: NDArray[np.integer], start: int) -> FetchAhead | None:
        if self.data.dataset.cache.complete:
            return None
        if self._fetch is None:
            self._fetch = FetchAhead(self.data.dataset.cache)
        needed = self.data.shards_of(blocks_of_batches(order, start, self.layout))
        self._fetch.plan(needed, self.data.dataset.predownload)
        return self._fetch

    def _stop_reading(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()  # type: ignore[attr-defined]  # both kinds have it
            self.data.dataset.reader.close()  # a thread that still waits for a shard keeps what it has open

    def _summarize(self) -> EpochSummary:
        dataset = self.data.dataset
        streams = tuple(
            StreamSummary(name, samples, samples * self.seq_len, samples / dataset.epoch_size)
            for name, samples in zip(dataset.stream_names(), (int(one.choose) for one in dataset.streams), strict=True)
        )
        samples, batch = self.orders.length, self.layout.global_batch
        if samples < batch:
            raise ConfigError(
                f"an epoch has {samples} samples, fewer than one global batch of {batch};"
                " lower training.global_batch_size, or raise epoch_size"
            )
        return EpochSummary(streams, samples // batch)


class EvalLoader:
    """Each sample of the eval set once, in the same order every time. All ranks yield equally many micro-batches.

    The last micro-batches are filled up with rows whose labels are all ignored, so the sum of the losses over all ranks
    divided by the count of labels that are not ignored is the exact mean over the set.
    """

    def __init__(self, data: BatchedDataset, layout: Layout) -> None:
        self.data, self.layout = data, layout
        data.dataset.num_canonical_nodes = 1  # more would repeat samples to even out the nodes' parts
        data.dataset.batching_method = "random"  # stratified has no way to share out a batch of one
        self.orders = data.orders(1)
        self._fetch: FetchAhead | None = None

    def __iter__(self) -> Iterator[MicroBatch]:
        """From the first sample on."""
        order, position = self.orders.get(0), 0
        cache = self.data.dataset.cache
        if self._fetch is None and not cache.complete:
            self._fetch = FetchAhead(cache)
        if self._fetch is not None:
            needed = self.data.shards_of(blocks_of_padded_batches(order, self.layout))
            self._fetch.plan(needed, self.data.dataset.predownload)
        for ids in chain.from_iterable(blocks_of_padded_batches(order, self.layout)):
            if self._fetch is not None:
                self._fetch.advance(position)
            yield self.data.make_batch(ids)
            position += len(ids)

    def take_part(self, dp_rank: int) -> None:
        """From the next pass on this is the loader of data-parallel rank `dp_rank`."""
        self.layout = dataclasses.replace(self.layout, dp_rank=dp_rank)

    def __len__(self) -> int:
        """Micro-batches of a pass."""
        return -(-self.orders.length // (self.layout.local_batch * self.layout.dp_world_size))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every pass is the same."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Stop threads, close files."""
        if self._fetch is not None:
            self._fetch.close()
            self._fetch = None
        self.data.dataset.reader.close()
        self.data.dataset.cache.close()


def _through_workers(
    workers: Workers, plan: Iterator[tuple[NDArray[np.int64], int]]
) -> Iterator[tuple[MicroBatch, int]]:
    """Micro-batches made by worker processes, in the plan's order, each with the samples of its epoch."""
    epochs: list[int] = []

    def ids() -> Iterator[NDArray[np.int64]]:
        for sample_ids, epoch_samples in plan:
            epochs.append(epoch_samples)
            yield sample_ids

    with closing(workers(ids())) as batches:
        for batch in batches:
            yield batch, epochs.pop(0)
