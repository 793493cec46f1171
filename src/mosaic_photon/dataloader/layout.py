"""Who gets which sample: arithmetic on the global order of an epoch. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """One data-parallel rank's part of the global batch. Nothing else of the job's layout matters."""

    dp_world_size: int
    dp_rank: int
    local_batch: int
    """Samples of a micro-batch of one rank."""
    global_batch: int
    """Samples of an optimizer step over all ranks."""
    unit: int = 1
    """Consecutive samples that stay together on a rank: 1, or local_batch where a device's batch is of one stream."""

    @classmethod
    def of(cls, dp_world_size: int, dp_rank: int, local_batch: int, global_batch: int) -> Layout:
        """`global_batch` < 0 means one micro-batch of each rank. Raises ConfigError if the batches don't divide."""
        if global_batch < 0:
            global_batch = local_batch * dp_world_size
        if local_batch < 1 or global_batch % (local_batch * dp_world_size):
            raise ConfigError(
                f"training.global_batch_size {global_batch} is no multiple of training.local_batch_size {local_batch}"
                f" x {dp_world_size} data-parallel ranks = {local_batch * dp_world_size}"
            )
        return cls(dp_world_size, dp_rank, local_batch, global_batch)


def usable_samples(epoch_samples: int, start: int, layout: Layout) -> int:
    """Samples from `start` to the end of the epoch that fill whole global batches."""
    return max(0, epoch_samples - start) // layout.global_batch * layout.global_batch


def rank_batches(order: NDArray[np.int64], start: int, layout: Layout) -> NDArray[np.int64]:
    """The rank's sample ids from `start` on, of shape (micro-batches, local_batch).

    Units of consecutive samples are dealt to the ranks in turn, as Streaming does: each global batch holds the same
    samples for every number of ranks.
    """
    stop = start + usable_samples(len(order), start, layout)
    dealt = order[start:stop].reshape(-1, layout.dp_world_size, layout.unit)  # (rounds, ranks, unit)
    return dealt[:, layout.dp_rank].reshape(-1, layout.local_batch)


def padded_rank_batches(order: NDArray[np.int64], layout: Layout) -> NDArray[np.int64]:
    """All samples once, of shape (micro-batches, local_batch), equally many on all ranks; -1 fills up the last."""
    whole = layout.local_batch * layout.dp_world_size
    padded = np.pad(order, (0, -len(order) % whole), constant_values=-1)
    return padded.reshape(-1, layout.dp_world_size)[:, layout.dp_rank].reshape(-1, layout.local_batch)
