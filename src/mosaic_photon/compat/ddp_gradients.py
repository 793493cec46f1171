"""TorchTitan 0.2.2 under DDP: gradients are 1/N too small.

The loss is already divided by the tokens of the global batch, so gradients have to be summed over the ranks; DDP
averages them. And they have to be summed once a step: DDP reduces after each micro-batch what has accumulated until
then, which only an average can bear. Upstream: pytorch/torchtitan#2318. Delete, with the call in
`MosaicTrainer.forward_backward_step`, when TorchTitan sums DDP gradients.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable.replicate import DDP
from torch.distributed.device_mesh import DeviceMesh


def _sum_bucket(
    group: dist.ProcessGroup,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # DDP checks this annotation; torch has no stub for it
) -> torch.futures.Future[torch.Tensor]:
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def sum_ddp_gradients(model: Any, mesh: DeviceMesh) -> None:
    """Sum `model`'s gradients over the data-parallel `mesh`. `model` is already wrapped by `replicate`."""
    model.register_comm_hook(mesh.get_group(), _sum_bucket)


def reduce_in_this_backward(model: nn.Module, reduce: bool) -> None:
    """Before a forward pass: whether its backward pass reduces gradients, if `model` is under DDP; else nothing."""
    if isinstance(model, DDP):
        model.set_requires_gradient_sync(reduce)
