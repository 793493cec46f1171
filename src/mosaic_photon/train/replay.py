"""A step of a run once more: its own trainer, from the checkpoint before it, and nothing written."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mosaic_photon import stores
from mosaic_photon.checkpoints.contents import DATA_STATE, read_values
from mosaic_photon.checkpoints.find import checkpoint_folder, is_complete, step_folders
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.interface import PassedOverError
from mosaic_photon.titan.metrics import knows_metrics
from mosaic_photon.train.loop import MosaicLoop


@dataclass(frozen=True)
class Replayed:
    """One step, run again."""

    step: int
    loss: float | None
    """The mean over the global batch's labels; None: the step made no optimizer step."""
    grad_norm: float | None
    """Before clipping."""


def checkpoint_before(job: MosaicJobConfig, step: int) -> int:
    """The newest of the job's checkpoints before a step from which a run can go on; -1: none, as of a run's begin."""
    folders = step_folders(checkpoint_folder(job)) if job.checkpoint.enable else {}
    newest_first = ((number, path) for number, path in reversed(folders.items()) if number < step and is_complete(path))
    return next((number for number, path in newest_first if number == 0 or read_values(path, DATA_STATE)[0]), -1)


def as_replay(job: MosaicJobConfig, first: int, scratch: str) -> MosaicJobConfig:
    """The job, to begin from the checkpoint before its step `first`, as the run did; what it writes goes to `scratch`.

    Every step is reported, no checkpoint is written and nothing validated. Its length and all that a step depends on
    stay the run's.
    """
    replayed = copy.deepcopy(job)
    before = checkpoint_before(job, first)
    checkpoint, metrics = replayed.checkpoint, replayed.metrics
    checkpoint.load_step, checkpoint.load_only, checkpoint.enable_first_step_checkpoint = before, True, False
    checkpoint.folder = stores.join(os.getcwd(), checkpoint_folder(job)) if before >= 0 else f"{scratch}/none"
    replayed.job.dump_folder = scratch
    metrics.log_freq, metrics.enable_tensorboard, metrics.enable_wandb = 1, False, False
    replayed.profiling.enable_profiling = replayed.profiling.enable_memory_snapshot = False
    replayed.validation.enable = False
    if job.mosaic.nonfinite == "stop":  # the step may be looked at because of its numbers
        replayed.mosaic.nonfinite = "ignore"
    return replayed


class ReplayLoop(MosaicLoop):
    """The job's loop up to the last of the steps that are asked for.

    Args:
        steps: those.
        found: gets their numbers; the same on all ranks.
    """

    def __init__(self, *args: Any, steps: range, found: list[Replayed]) -> None:
        super().__init__(*args)
        self.steps, self.found, self.passed_over = steps, found, 0

    def wants_stop(self) -> bool:
        """After the last step, too."""
        asked = super().wants_stop()
        return asked or self.trainer.step >= self.steps[-1]

    def pass_over(self, why: PassedOverError) -> None:
        """Note that the step has no numbers, too."""
        self.passed_over = self.trainer.step
        super().pass_over(why)

    def end_step(self) -> None:
        """Note the step's numbers, too. Collective."""
        super().end_step()
        if self.trainer.step in self.steps:
            self.found.append(self._numbers())

    def _numbers(self) -> Replayed:
        step, last = self.trainer.step, self.trainer.last_metrics
        if self.passed_over == step:
            return Replayed(step, None, None)
        told = knows_metrics(self.trainer.parallel_dims, self.trainer.job_config)
        numbers = torch.tensor([last["loss"], last["grad_norm"]] if told else [0.0, 0.0], dtype=torch.float64)
        if dist.get_world_size() > 1:  # pipeline stages without the loss know none
            dist.all_reduce(numbers, group=self.group)
        return Replayed(step, *numbers.tolist())
