"""Tensor parallelism without FSDP: the gradients of norms are not clipped.

Under sequence parallelism a norm's gradient is a DTensor `Partial` over the ranks. `clip_grad_norm_` scales gradients
in place, which DTensor carries out on a reduced copy and forgets; the optimizer then reduces the unclipped values.
Here gradients are placed as their parameters are, once a step and before they are clipped; FSDP does so by itself.
Upstream: no issue filed yet; torch 2.11, in-place `_foreach_mul_` of a Partial DTensor, which changes it in 2.15.
Delete with TorchTitan 0.2.2, or when no older torch is run.
"""

from collections.abc import Iterable

from torch import nn
from torch.distributed.tensor import DTensor

NEEDED = "torch<2.15"


def place_as_parameters(model_parts: Iterable[nn.Module]) -> None:
    """After a step's last backward pass: give every gradient its parameter's placements. Collective over the mesh."""
    for part in model_parts:
        for parameter in part.parameters():
            gradient = parameter.grad
            if not isinstance(parameter, DTensor) or not isinstance(gradient, DTensor):
                continue
            if gradient.placements != parameter.placements:
                parameter.grad = gradient.redistribute(placements=parameter.placements)
