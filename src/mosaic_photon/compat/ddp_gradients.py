"""TorchTitan 0.2.2 under DDP: gradients are 1/N too small.

The loss is already divided by the tokens of the global batch, so gradients have to be summed over the ranks; DDP
averages them. Upstream: pytorch/torchtitan#2318. Delete when TorchTitan sums DDP gradients.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


def _sum_bucket(group: dist.ProcessGroup, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def sum_ddp_gradients(model: Any, mesh: DeviceMesh) -> None:
    """Sum `model`'s gradients over the data-parallel `mesh`. `model` is already wrapped by `replicate`."""
    model.register_comm_hook(mesh.get_group(), _sum_bucket)
