"""How a job that spikes have ended goes on from before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mosaic_photon.checkpoints.find import checkpoint_folder, complete_steps
from mosaic_photon.dataloader import DataSpecDataLoader
from mosaic_photon.job.tables import MosaicJobConfig


class Spike(Protocol):
    """A step whose numbers have leapt."""

    @property
    def step(self) -> int: ...
    @property
    def batch(self) -> int:
        """The plan's, counted from 1."""
        ...


def flags_without(spikes: Sequence[Spike], loader: DataSpecDataLoader, job: MosaicJobConfig) -> list[str]:
    """The flags by which the job's command begins before these steps, without the batches from the first to the last.

    It begins from the newest checkpoint before them. Where none is as old, from the newest of all, without the batches
    after it: those before it have made no optimizer step.
    """
    complete = list(complete_steps(checkpoint_folder(job))) if job.checkpoint.enable else []
    begin = max((step for step in complete if step < spikes[0].step), default=max(complete, default=-1))
    batches = [spike.batch for spike in spikes if spike.step > begin]
    asked = job.checkpoint.load_step
    unasked = begin == (max(complete, default=-1) if asked == -1 else asked)
    flags = [] if unasked else [f"--checkpoint.load_step={begin}"]
    return [*flags, f"--mosaic.skip_batches={','.join(loader.skipping_too(batches[0], batches[-1]))}"]
