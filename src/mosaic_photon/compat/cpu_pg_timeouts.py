"""TorchTitan's `set_pg_timeouts` calls `barrier(device_ids=["cpu"])` after the first step, a TypeError with gloo.

The same function with a plain barrier. TorchTitan supports accelerators only (no upstream
issue). Delete when its own works on gloo.
"""

from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout
from torchtitan.distributed import ParallelDims
from torchtitan.distributed import utils as dist_utils

NEEDED = "torchtitan"


def set_pg_timeouts(timeout: timedelta, parallel_dims: ParallelDims) -> None:
    """After all ranks have met, give every process group of the mesh and the world's the new timeout."""
    dist.barrier()
    meshes = parallel_dims.get_all_one_dimensional_meshes().values()
    for group in [mesh.get_group() for mesh in meshes] + [None]:
        _set_pg_timeout(timeout, group)


def apply() -> None:
    dist_utils.set_pg_timeouts = set_pg_timeouts
