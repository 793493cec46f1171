"""A job's data, opened before the trainer is built: a mistake in them ends the job before anything is written."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from mosaic_photon.checkpoints.contents import saved_position
from mosaic_photon.checkpoints.find import Start, find_start
from mosaic_photon.dataloader import DataSpecDataLoader, build_mosaic_dataloader
from mosaic_photon.dataloader.build import build_mosaic_eval_dataloaders, seats_of_job
from mosaic_photon.dataloader.loader import BatchedDataset, EvalLoader
from mosaic_photon.job.run_length import Position, RunLength
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.spec import TrainSpec
from mosaic_photon.tokenizers import notes_on, special_tokens


@dataclass(frozen=True)
class JobData:
    """The open loaders of a job, of the first data-parallel rank until they are dealt, and how long its run is."""

    loader: DataSpecDataLoader
    eval_loaders: Mapping[str, EvalLoader]
    """By label; empty without validation."""
    run: RunLength
    start: Start
    """What the job begins from: the data are those that it knew, so the trainer must load this one."""

    def deal(self, dp_world_size: int, dp_rank: int) -> None:
        """From now on all loaders yield this data-parallel rank's part. Collective over the job."""
        assert dp_world_size == self.loader.layout.dp_world_size
        self.loader.take_part(dp_rank, seats_of_job(dp_world_size, dp_rank))
        for eval_loader in self.eval_loaders.values():
            eval_loader.take_part(dp_rank)

    def close(self) -> None:
        """Stop threads and workers, close files. Safe to call twice."""
        with ExitStack() as stack:
            stack.callback(self.loader.close)
            for eval_loader in self.eval_loaders.values():
                stack.callback(eval_loader.close)


def open_loaders(
    spec: TrainSpec, job_config: MosaicJobConfig, dp_world_size: int, check: Callable[[RunLength], None]
) -> JobData:
    """Open the job's data.

    Args:
        spec: the job's model.
        job_config: the job, checked.
        dp_world_size: data-parallel ranks.
        check: judges what of the job depends on how long its run is; raises ConfigError.

    Raises:
        ConfigError: the first mistake found.
    """
    tokenizer = spec.build_tokenizer_fn(job_config)
    if os.environ["RANK"] == "0":
        for note in notes_on(special_tokens(job_config.model.hf_assets_path)):
            logging.getLogger(__name__).warning(note)
    start = find_start(job_config)
    state, steps = saved_position(start, job_config)
    loader = build_mosaic_dataloader(dp_world_size, 0, tokenizer, job_config, state)
    begin = Position(steps, loader.begin.samples, loader.begin.tokens) if state and steps else Position()
    training, batch = job_config.training, loader.layout.global_batch
    run = RunLength(training.steps, batch, batch * training.seq_len, loader.steps_per_epoch, begin)
    check(run)
    check_some_samples(loader.data)
    if not job_config.validation.enable:
        return JobData(loader, {}, run, start)
    eval_loaders = build_mosaic_eval_dataloaders(dp_world_size, 0, tokenizer, job_config)
    for eval_loader in eval_loaders.values():
        check_some_samples(eval_loader.data)
    return JobData(loader, eval_loaders, run, start)


def build_dataloader(
    dp_world_size: int, dp_rank: int, tokenizer: Any, job_config: MosaicJobConfig
) -> DataSpecDataLoader:
    """One data-parallel rank's training loader; a job that will go on from a checkpoint gets the data that it knew."""
    state, _ = saved_position(find_start(job_config), job_config)
    return build_mosaic_dataloader(dp_world_size, dp_rank, tokenizer, job_config, state)


def check_some_samples(data: BatchedDataset, samples: int = 64) -> None:
    """Read samples from all over this process's part of the shards that are already on this machine.

    Another rank of the machine may just be replacing a damaged shard of its own part.

    Raises:
        ConfigError: one of them cannot be used, e.g. has a token outside the vocabulary.
    """
    dataset = data.dataset
    ids = np.unique(np.linspace(0, dataset.num_samples - 1, samples, dtype=np.int64))
    shard_ids, _ = dataset.locate(ids)
    rank, ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    here = [int(shard) % ranks == rank and dataset.cache.is_here(int(shard)) for shard in shard_ids]
    if any(here):
        data.make_batch(ids[here])
        dataset.reader.close()
