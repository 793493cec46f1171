"""TorchTitan 0.2.2 under DDP: gradients are 1/N too small.

The loss is already divided by the tokens of the global batch, so gradients have to be summed over the N ranks; DDP
averages them. Here the loss has N times its gradient, so that the average is the sum: also where DDP reduces after
each micro-batch what has accumulated until then, which only an average can bear. Upstream: pytorch/torchtitan#2318.
Delete, with the call in `titan.v02.spec`, when TorchTitan sums DDP gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed._composable.replicate import DDP

NEEDED = "torchtitan<0.3"


class _TimesGradient(torch.autograd.Function):
    """The identity, with `factor` times its gradient."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factor: int) -> torch.Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None


def for_averaged_gradients(loss_fn: Callable[..., torch.Tensor], ranks: int) -> Callable[..., torch.Tensor]:
    """`loss_fn`, whose gradients averaged over `ranks` ranks are the sum of what they were."""

    def loss(pred: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _TimesGradient.apply(loss_fn(pred, labels), ranks)

    return loss


def reduce_in_this_backward(model: nn.Module, reduce: bool) -> None:
    """Before a forward pass: whether its backward pass reduces gradients, if `model` is under DDP; else nothing.

    Once a step is enough; TorchTitan does it after each micro-batch.
    """
    if isinstance(model, DDP):
        model.set_requires_gradient_sync(reduce)
