"""llm-foundry's loader config in, TorchTitan's batches out. Names are imported on first use.

How a batch comes about, in each rank:

 1. `build` reads the data config and opens the data: `dataset` fetches each stream's index and knows the shards, and
    `tokens` (arrays of token ids) or `foundry_loader` (all else, through llm-foundry's `build_dataloader`) says how
    samples become a micro-batch. Both together are a `BatchedDataset`.
 2. `order/epoch` fixes the order of an epoch: of which sample each place is. `order/orders` has a large one made once a
    node, by a process of its own, into a file that all ranks map; the next epoch's is made while this one runs.
 3. `order/plan` says which samples each global batch of the run has, batches counted from 0, and `order/deal` which of
    them are this rank's; `loader` asks for them micro-batch after micro-batch, from `progress` on. What a step gets
    depends on the order alone; which rank of it gets what, on the nodes too.
 4. Where shards are missing here, the threads of `shards/ahead.FetchAhead` ("mosaic-fetch-N") walk the same plan in
    front and let `shards/cache` fetch them: one process of the node a shard, under a lock, checked, renamed when whole.
 5. The thread of `shards/ahead.ReadAhead` ("mosaic-read") makes micro-batches, a few ahead: `tokens` reads the samples'
    bytes from the shard files straight into rows. With `num_workers` llm-foundry's part is done by worker processes.
 6. The trainer's thread takes a micro-batch, `loader` counts its samples in `progress`, and that count, with the
    fingerprint of all that fixed the order, is what a checkpoint keeps: batches made ahead are not in it.

`EvalLoader` does the same for validation, each sample once, in the trainer's thread.

Numbers of samples, wherever they fly around: a *sample id* counts over all streams of a dataset, shard after shard, and
is -1 where a batch is filled up; a *position* is a place in an epoch's order; a *shard id* counts over all streams; an
*index* is a sample's place in its shard; a *row* is one in a micro-batch. `samples_in_epoch` counts positions that all
ranks together have been handed.
"""

from typing import TYPE_CHECKING

from mosaic_photon.names import lazy_names

if TYPE_CHECKING:
    from mosaic_photon.dataloader.build import build_mosaic_dataloader, build_mosaic_eval_dataloader
    from mosaic_photon.dataloader.loader import DataSpecDataLoader

__all__ = ["DataSpecDataLoader", "build_mosaic_dataloader", "build_mosaic_eval_dataloader"]
_HOMES = {"DataSpecDataLoader": "loader"} | dict.fromkeys(__all__[1:], "build")
__getattr__ = lazy_names(__name__, _HOMES)
