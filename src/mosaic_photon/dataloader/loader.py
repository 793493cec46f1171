"""The loaders that TorchTitan gets: an endless one for training that knows where it is, a finite one for validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import mosaic_photon.compat  # noqa: F401  (before any import of TorchTitan)

import numpy as np
from numpy.typing import NDArray
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.tools.logging import logger

from mosaic_photon.dataloader.ahead import FetchAhead, ReadAhead
from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.layout import Layout, padded_rank_batches, rank_batches, usable_samples
from mosaic_photon.dataloader.progress import Progress, dump_state, fingerprint, load_state
from mosaic_photon.dataloader.tokens import Batch
from mosaic_photon.errors import ConfigError

STATE_KEY = "mosaic_dataloader"
BATCHES_AHEAD = 4
MakeBatch = Callable[[NDArray[np.int64]], Batch]
Workers = Callable[[Iterator[NDArray[np.int64]]], Generator[Batch, None, None]]


@dataclass(frozen=True)
class Data:
    """A dataset and how to make batches of it."""

    dataset: ShardedDataset
    make_batch: MakeBatch
    """From sample ids to a micro-batch, in this process."""
    workers: Workers | None = None
    """From an iterator of sample ids to one of micro-batches, through worker processes. None: no workers."""
    pin_memory: bool = False


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
class Summary:
    """What the table at the start of a job shows of the data."""

    streams: tuple[StreamSummary, ...]
    samples_per_epoch: int
    tokens_per_epoch: int
    steps_per_epoch: int


class DataSpecDataLoader(BaseDataLoader):
    """Endless micro-batches `({"input": int64 [B, S]}, labels int64 [B, S])`; labels shifted, ignored ones -100.

    The state is one JSON string, equal on all ranks, that any data-parallel size can go on from.
    """

    def __init__(self, data: Data, layout: Layout, seq_len: int, allow_data_change: bool = False) -> None:
        """Raises ConfigError if an epoch does not fill one global batch."""
        unit = layout.local_batch if data.dataset.batching_method == "device_per_stream" else 1
        self.data, self.layout, self.seq_len = data, dataclasses.replace(layout, unit=unit), seq_len
        self.progress = Progress()
        self._allow_data_change = allow_data_change
        self.marks = fingerprint(data.dataset, layout.global_batch, layout.local_batch)
        self._running: Iterator[tuple[Batch, int]] | None = None
        self._fetch: FetchAhead | None = None
        self._order_of: tuple[int, NDArray[np.int64]] | None = None
        self.summary = self._summarize()

    def __iter__(self) -> Iterator[Batch]:
        """Go on from `progress`. A second call ends the iteration of the first."""
        self._stop_reading()
        running = self._running = self._read()
        samples = self.layout.local_batch * self.layout.dp_world_size
        for batch, epoch_samples in running:
            self.progress = self.progress.advance(samples, samples * self.seq_len, epoch_samples)
            yield batch

    def add_loss_tokens(self, count: int) -> None:
        """Count `count` target positions, summed over all ranks, as seen by the loss. Call it alike on all ranks."""
        self.progress = dataclasses.replace(self.progress, loss_tokens=self.progress.loss_tokens + count)

    def describe(self, begin: Progress, most: int = 8) -> str:
        """The samples of the step that began at `begin`, as numbers within their streams, at most `most` a stream."""
        dataset, first = self.data.dataset, begin.samples_in_epoch
        ids = np.sort(self._order(begin.epoch)[first : first + self.layout.global_batch])
        of = np.searchsorted(dataset.sample_offset_per_stream, ids, side="right") - 1
        parts = []
        for number in np.unique(of):
            numbers = (ids[of == number] - dataset.sample_offset_per_stream[number]).tolist()
            more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
            name = getattr(dataset.streams[number], "name", str(number))
            parts.append(f"stream {name!r}, samples {', '.join(map(str, numbers[:most]))}{more}")
        return "; ".join(parts)

    def state_dict(self) -> dict[str, str]:
        """What has been handed to the trainer so far, under one key."""
        return {STATE_KEY: dump_state(self.progress, self.marks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was saved. Raises ConfigError if the data config has changed the order of samples."""
        if not state_dict:
            return
        if STATE_KEY not in state_dict:
            raise ConfigError("the checkpoint was written with another data loader and does not say where its data is")
        self.progress, difference = load_state(state_dict[STATE_KEY], self.marks, self._allow_data_change)
        self._stop_reading()
        if difference:
            order = self._order(self.progress.epoch)
            if not usable_samples(len(order), self.progress.samples_in_epoch, self.layout):
                self.progress = dataclasses.replace(self.progress, epoch=self.progress.epoch + 1, samples_in_epoch=0)
            logger.warning(f"Going on with a changed data config (checkpoint -> now):\n{difference}")

    def close(self) -> None:
        """Stop threads and workers, close files. The loader can be iterated again."""
        self._stop_reading()
        if self._fetch is not None:
            self._fetch.close()
            self._fetch = None
        self.data.dataset.reader.close()
        self.data.dataset.cache.close()

    def _read(self) -> Iterator[tuple[Batch, int]]:
        """Micro-batches from `progress` on, each with the samples of its epoch."""
        if self.data.workers is None:
            batches = ((self._made(ids), epoch_samples) for ids, epoch_samples in self._plan())
            return ReadAhead(batches, BATCHES_AHEAD)
        self.close()  # threads and connections go neither through a fork nor through a spawn
        read = _through_workers(self.data.workers, self._plan())
        return ((self._pinned(batch), epoch_samples) for batch, epoch_samples in read)

    def _made(self, ids: NDArray[np.int64]) -> Batch:
        return self._pinned(self.data.make_batch(ids))

    def _pinned(self, batch: Batch) -> Batch:
        inputs, labels = batch
        if self.data.pin_memory:
            return {name: tensor.pin_memory() for name, tensor in inputs.items()}, labels.pin_memory()
        return batch

    def _plan(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        """The rank's sample ids of each micro-batch from `progress` on, endless, with the samples of its epoch."""
        epoch, start = self.progress.epoch, self.progress.samples_in_epoch
        while True:
            order = self._order(epoch)
            usable = usable_samples(len(order), start, self.layout)
            batches = rank_batches(order, start, self.layout)
            fetch = self._fetch_ahead(batches)
            for number, ids in enumerate(batches):
                if fetch is not None:
                    fetch.advance(number * self.layout.local_batch)
                yield ids, start + usable
            epoch, start = epoch + 1, 0

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._order_of is None or self._order_of[0] != epoch:
            # A batch of Streaming's is a global batch: what it promises of a batch then holds for every optimizer step.
            dataset, layout = self.data.dataset, self.layout
            batch = layout.local_batch if dataset.batching_method == "device_per_stream" else layout.global_batch
            self._order_of = epoch, dataset.epoch_order(epoch, batch)
        order = self._order_of[1]
        if len(order) < self.layout.global_batch:
            raise ConfigError(
                f"an epoch has {len(order)} samples, fewer than one global batch of {self.layout.global_batch};"
                " lower training.global_batch_size, or raise epoch_size"
            )
        return order

    def _fetch_ahead(self, batches: NDArray[np.int64]) -> FetchAhead | None:
        cache = self.data.dataset.cache
        if cache.complete:
            return None
        if self._fetch is None:
            self._fetch = FetchAhead(cache)
        shard_ids, _ = self.data.dataset.locate(batches.reshape(-1))
        self._fetch.plan(shard_ids, self.data.dataset.predownload)
        return self._fetch

    def _stop_reading(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()  # type: ignore[attr-defined]  # both kinds have it

    def _summarize(self) -> Summary:
        dataset = self.data.dataset
        streams = tuple(
            StreamSummary(
                getattr(stream, "name", str(number)),
                int(stream.choose),
                int(stream.choose) * self.seq_len,
                int(stream.choose) / dataset.epoch_size,
            )
            for number, stream in enumerate(dataset.streams)
        )
        steps = len(self._order(0)) // self.layout.global_batch
        return Summary(streams, dataset.epoch_size, dataset.epoch_size * self.seq_len, steps)


class EvalLoader(BaseDataLoader):
    """Each sample of the eval set once, in the same order every time. All ranks yield equally many micro-batches.

    The last micro-batches are filled up with rows whose labels are all ignored, so the sum of the losses over all ranks
    divided by the count of labels that are not ignored is the exact mean over the set.
    """

    def __init__(self, data: Data, layout: Layout) -> None:
        self.data, self.layout = data, layout
        data.dataset.num_canonical_nodes = 1  # more would repeat samples to even out the nodes' parts
        data.dataset.batching_method = "random"  # stratified has no way to share out a batch of one
        self._batches = padded_rank_batches(data.dataset.epoch_order(0, 1), layout)
        self._fetch: FetchAhead | None = None

    def __iter__(self) -> Iterator[Batch]:
        """From the first sample on."""
        cache = self.data.dataset.cache
        if self._fetch is None and not cache.complete:
            self._fetch = FetchAhead(cache)
        if self._fetch is not None:
            ids = self._batches[self._batches >= 0]
            self._fetch.plan(self.data.dataset.locate(ids)[0], self.data.dataset.predownload)
        for number, ids in enumerate(self._batches):
            if self._fetch is not None:
                self._fetch.advance(number * self.layout.local_batch)
            yield self.data.make_batch(ids)

    def __len__(self) -> int:
        """Micro-batches of a pass."""
        return len(self._batches)

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


def _through_workers(workers: Workers, plan: Iterator[tuple[NDArray[np.int64], int]]) -> Iterator[tuple[Batch, int]]:
    """Micro-batches made by worker processes, in the plan's order, each with the samples of its epoch."""
    epochs: list[int] = []

    def ids() -> Iterator[NDArray[np.int64]]:
        for sample_ids, epoch_samples in plan:
            epochs.append(epoch_samples)
            yield sample_ids

    with closing(workers(ids())) as batches:
        for batch in batches:
            yield batch, epochs.pop(0)
