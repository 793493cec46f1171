"""The loaders that TorchTitan gets: an endless one for training that knows where it is, a finite one for validation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.node.folder import node_folder
from mosaic_photon.dataloader.order.deal import Layout, blocks_of_padded_batches
from mosaic_photon.dataloader.order.orders import Orders
from mosaic_photon.dataloader.order.plan import BEGIN, Origin, StaticPlan, origin_of
from mosaic_photon.dataloader.order.skips import Skips
from mosaic_photon.dataloader.order.staged import StagedPlan
from mosaic_photon.dataloader.progress import Progress, Saved, dump_state, fingerprint_of, load_state
from mosaic_photon.dataloader.shards.ahead import FetchAhead, ReadAhead
from mosaic_photon.dataloader.staging import Staging, origin_of_stages, rows_of, static_before
from mosaic_photon.dataloader.tokens import MicroBatch
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.data_config import DataConfig
from mosaic_photon.job.run_length import RunLength
from mosaic_photon.job.stages import STAGES

logger = logging.getLogger(__name__)

STATE_KEY = "mosaic_dataloader"
BATCHES_AHEAD = 4
NO_SKIPS = Skips()
SampleIds = NDArray[np.int64]
MakeBatch = Callable[[SampleIds], MicroBatch]
Workers = Callable[[Iterator[SampleIds]], Generator[MicroBatch, None, None]]


@dataclass
class BatchedDataset:
    """A dataset, how to make micro-batches of it, and the threads that fetch ahead what they need."""

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
    _fetch: FetchAhead | None = None

    def orders(self, batch: int, **changes: Any) -> Orders:
        """The orders of epochs in batches of so many samples, with these changes of EpochOrder's fields.

        Raises ConfigError if the settings make no epoch.
        """
        order = dataclasses.replace(self.dataset.order(batch), **changes)
        return Orders(order, lambda: node_folder(self.node_folder))

    def in_turn(self, blocks: Callable[[], Iterator[SampleIds]]) -> Iterator[SampleIds]:
        """The sample ids of one micro-batch after the other, while threads fetch what the coming ones need.

        Args:
            blocks: begins anew to yield them all, many micro-batches [N, B] at a time; -1 only fills up a batch.
        """
        cache, fetch, position = self.dataset.cache, None, 0
        if not cache.complete:
            fetch = self._fetch = self._fetch or FetchAhead(cache)
            needed = (self.dataset.locate(ids[ids >= 0])[0] for ids in blocks())
            fetch.plan(needed, self.dataset.predownload)
        for ids in chain.from_iterable(blocks()):
            if fetch is not None:
                fetch.advance(position)
            yield ids
            position += len(ids)

    def batches(self, ids: Iterator[SampleIds]) -> Generator[MicroBatch, None, None]:
        """The micro-batches of these sample ids, made in this thread or by the workers; pinned if asked for."""
        made = (self.make_batch(one) for one in ids) if self.workers is None else self.workers(ids)
        with closing(made):
            for inputs, labels in made:
                if self.pin_memory:
                    inputs, labels = {name: tensor.pin_memory() for name, tensor in inputs.items()}, labels.pin_memory()
                yield inputs, labels

    def close(self) -> None:
        """Stop the threads, close files and connections. All of them begin anew when they are needed."""
        if self._fetch is not None:
            self._fetch.close()
            self._fetch = None
        self.dataset.reader.close()
        self.dataset.cache.close()


class DataSpecDataLoader:
    """Endless micro-batches `({"input": int64 [B, S]}, labels int64 [B, S])`; labels shifted, ignored ones -100.

    The state is one JSON string, equal on all ranks, that any data-parallel size can go on from.
    """

    def __init__(
        self,
        data: BatchedDataset,
        layout: Layout,
        seq_len: int,
        allow_data_change: bool = False,
        skips: Skips = NO_SKIPS,
        staging: Staging | None = None,
    ) -> None:
        """Raises ConfigError if the settings make no epoch, or one that does not fill one global batch.

        Args:
            data: what is read.
            layout: this rank's part.
            seq_len: tokens of a row.
            allow_data_change: go on from a state of other data.
            skips: batches of the plan that are passed over: nothing of them is read.
            staging: the run's stages; None: it has none.
        """
        by_device = data.dataset.batching_method == "device_per_stream"
        unit = layout.local_batch if by_device else 1
        self.data, self.layout, self.seq_len = data, dataclasses.replace(layout, unit=unit), seq_len
        self._skips = skips
        self.plan: StaticPlan | StagedPlan
        if staging is None:
            # A batch of Streaming's is a global batch: what it promises of a batch then holds for every optimizer step.
            orders = data.orders(layout.local_batch if by_device else layout.global_batch)
            self.plan = StaticPlan(orders, layout.global_batch)
        else:
            self.plan = staging.plan(data, layout.global_batch)
        self.progress = self.begin = Progress().at(0, 0, self.plan, skips)
        """`begin` is where the job goes on, known before its checkpoint is loaded."""
        self._allow_data_change = allow_data_change
        stages = "" if staging is None else staging.kept()
        self.fingerprint = fingerprint_of(data.dataset, layout.global_batch, layout.local_batch, stages)
        self._running: Iterator[MicroBatch] | None = None

    @property
    def orders(self) -> Orders:
        """Of the epochs of a run without stages."""
        assert isinstance(self.plan, StaticPlan)
        return self.plan.orders

    @property
    def steps_per_epoch(self) -> int | None:
        """None where the run is in stages."""
        return self.plan.batches_per_epoch if isinstance(self.plan, StaticPlan) else None

    def __iter__(self) -> Iterator[MicroBatch]:
        """Go on from `progress`. A second call ends the iteration of the first."""
        self._stop_reading()
        running = self._running = self._read()
        samples, skips = self.layout.local_batch * self.layout.dp_world_size, self.skips_of(self.progress)
        for batch in running:
            self.progress = self.progress.advance(samples, samples * self.seq_len, self.plan, skips)
            yield batch

    def take_part(self, dp_rank: int, seats: tuple[int, ...]) -> None:
        """From the next iteration on this is the loader of data-parallel rank `dp_rank`; `seats` as in Layout."""
        self.layout = dataclasses.replace(self.layout, dp_rank=dp_rank, seats=seats)

    def add_loss_tokens(self, count: int) -> None:
        """Count `count` target positions, summed over all ranks, as seen by the loss. Call it alike on all ranks."""
        self.progress = dataclasses.replace(self.progress, loss_tokens=self.progress.loss_tokens + count)

    def describe(self, begin: Progress, most: int = 8) -> str:
        """The samples of the step that began at `begin`, as numbers within their streams, at most `most` a stream."""
        ids, names, dataset = np.sort(self.plan.samples(begin.batch)), self.plan.names, self.data.dataset
        of, parts = self.plan.stream_of(ids), []
        for number in np.unique(of):
            numbers = (ids[of == number] - dataset.sample_offset_per_stream[number]).tolist()
            more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
            parts.append(f"stream {names[number]!r}, samples {', '.join(map(str, numbers[:most]))}{more}")
        return "; ".join(parts)

    def skips_of(self, progress: Progress) -> Skips:
        """All that a run passes over which is there: what it has, and what the job asks for ahead."""
        return self._skips | Skips(progress.skipped)

    def reads(self, steps: int) -> Iterator[tuple[str, str]]:
        """Name and value of the lines that tell what a job of so many steps reads, as far as it is there."""
        return rows_of(self.plan_of(self.begin), self.skips_of(self.begin), steps)

    def skipping_too(self, first: int, last: int) -> list[str]:
        """What `[mosaic] skip_batches` is to say for these batches, counted from 1, to be passed over, too."""
        return (self.skips_of(self.progress) | Skips.of([(first - 1, last)])).texts

    def state_dict(self) -> dict[str, str]:
        """What has been handed to the trainer so far, under one key."""
        return {STATE_KEY: dump_state(self.progress, self.fingerprint)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was saved. Raises ConfigError if the data config has changed the order of samples."""
        if not state_dict:
            return
        if STATE_KEY not in state_dict:
            raise ConfigError("the checkpoint was written with another data loader and does not say where its data is")
        saved = self.position_in(state_dict[STATE_KEY])
        self._check_step_can_be_finished(saved.progress.samples_in_step)
        self.progress, self.plan = saved.progress, self.plan_of(saved.progress)
        self._stop_reading()
        if saved.difference:
            logger.warning(f"Going on with a changed data config (checkpoint -> now):\n{saved.difference}")

    def position_in(self, text: str) -> Saved:
        """What a state says, its progress where these data go on.

        Raises ConfigError as `load_state_dict`.
        """
        saved = load_state(text, self.fingerprint, self._allow_data_change, self.plan.names)
        progress, changed = saved.progress, bool(saved.difference)
        if changed:
            progress = dataclasses.replace(progress, samples_in_step=0)
        begin = progress.samples_in_epoch - progress.samples_in_step
        if isinstance(self.plan, StagedPlan):
            if STAGES not in saved.fingerprint:
                progress = origin_of_stages(self.data, progress, saved.fingerprint)
            if changed:
                assert progress.origin is not None
                origin = dataclasses.replace(progress.origin, known=progress.batch)
                progress = dataclasses.replace(progress, origin=origin, before=None)
        elif changed:
            origin = Origin(progress.batch, progress.epoch, begin)
            progress = dataclasses.replace(progress, origin=origin, before=None)
        elif progress.origin is None:
            plan = dataclasses.replace(self.plan, origin=BEGIN)
            progress = dataclasses.replace(progress, origin=origin_of(plan, progress.batch, progress.epoch, begin))
        batch, in_step = progress.batch, progress.samples_in_step
        self._skips.check_ahead(batch + bool(in_step), Skips(progress.skipped))
        progress = progress.at(batch, in_step, self.plan_of(progress), self.skips_of(progress))
        return dataclasses.replace(saved, progress=progress)

    def plan_of(self, progress: Progress) -> StaticPlan | StagedPlan:
        """The plan of a run that is there."""
        assert progress.origin is not None
        if isinstance(self.plan, StaticPlan):
            return dataclasses.replace(self.plan, origin=progress.origin)
        before = static_before(self.data, progress.before) if progress.before else None
        return dataclasses.replace(self.plan, origin=progress.origin, before=before)

    def _check_step_can_be_finished(self, done: int) -> None:
        """Raise ConfigError where the rest of a step, `done` samples in, is no whole micro-batches of all ranks."""
        layout = self.layout
        if (layout.global_batch - done) % (layout.local_batch * layout.dp_world_size):
            raise ConfigError(
                f"the state was saved within a step, after {done} of its {layout.global_batch} samples, and"
                f" {layout.dp_world_size} ranks with training.local_batch_size {layout.local_batch} can't finish it:"
                " save after a whole step, or load it with the sizes that it was saved with"
            )

    def close(self) -> None:
        """Stop threads and workers, close files. The loader can be iterated again."""
        self._stop_reading()
        self.plan.close()
        self.data.close()

    def _read(self) -> Iterator[MicroBatch]:
        """Micro-batches from `progress` on: ahead, by a thread or by workers."""
        if self.data.workers is None:
            return ReadAhead(self.data.batches(self._sample_ids()), BATCHES_AHEAD)
        self.close()  # threads and connections go neither through a fork nor through a spawn
        return self.data.batches(self._sample_ids())

    def _sample_ids(self) -> Iterator[SampleIds]:
        """The rank's sample ids of each micro-batch from `progress` on, without end but for that of the stages."""
        batch, done, plan, layout = self.progress.batch, self.progress.samples_in_step, self.plan, self.layout
        of_all, skips = layout.local_batch * layout.dp_world_size, self.skips_of(self.progress)
        while (end := skips.until(batch, plan.end(batch))) > batch:
            for ids in self.data.in_turn(partial(plan.blocks, batch, end, layout, done)):
                yield ids
                done += of_all
                if done == layout.global_batch:
                    batch, done = skips.next(batch + 1), 0
                    plan.prepare(batch)

    def _stop_reading(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()  # type: ignore[attr-defined]  # both kinds have it
            self.data.dataset.reader.close()  # a thread that still waits for a shard keeps what it has open


class EvalLoader:
    """Each sample of the eval set once, in the same order every time. All ranks yield equally many micro-batches.

    The last micro-batches are filled up with rows whose labels are all ignored, so the sum of the losses over all ranks
    divided by the count of labels that are not ignored is the exact mean over the set.
    """

    def __init__(self, data: BatchedDataset, layout: Layout) -> None:
        self.data, self.layout = data, layout
        # More canonical nodes would repeat samples to even out their parts; stratified can't share out a batch of one.
        self.orders = data.orders(1, canonical_nodes=1, batching_method="random")

    def __iter__(self) -> Iterator[MicroBatch]:
        """From the first sample on."""
        blocks = partial(blocks_of_padded_batches, self.orders.get(0), self.layout)
        return map(self.data.make_batch, self.data.in_turn(blocks))

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
        """Stop threads, close files. The loader can be iterated again."""
        self.data.close()


def not_read(_: Any) -> Any:
    """What stands for reading where data were opened for their plan alone."""
    raise AssertionError("these data were opened for their plan")


def plan_of_data(
    dataset: ShardedDataset, config: DataConfig, run: RunLength, skips: Skips, folder: str
) -> StaticPlan | StagedPlan:
    """The plan of a run from its first step on, without a job's loader. Raises ConfigError as a job would."""
    batch, data = run.per_step("sp"), BatchedDataset(dataset, not_read, not_read, node_folder=folder)
    if not config.stages:
        return StaticPlan(data.orders(batch), batch)
    staging = Staging.of(config.stages, dataset.stream_names, run, f"{config.path}: {STAGES}")
    plan = staging.plan(data, batch)
    staging.check(plan, skips, run.steps)
    return plan
