"""TorchTitan 0.2.2 under pipeline parallelism: gradients are not divided by the number of tokens.

The schedule runs backward on the loss function's sum, and only the logged loss is divided. Here the schedule's loss
function divides. Upstream: pytorch/torchtitan#2972. Delete, with the pipeline branch of
`MosaicTrainer.forward_backward_step`, when TorchTitan scales the loss before the schedule's backward.
"""

from collections.abc import Callable

import torch


class DividedLoss:
    """`loss_fn(pred, labels) / denominator`; the trainer sets the denominator before each step, validation sets 1."""

    def __init__(self, loss_fn: Callable[..., torch.Tensor]) -> None:
        self.loss_fn = loss_fn
        self.denominator: torch.Tensor | float = 1.0

    def __call__(self, pred: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss_fn(pred, labels) / self.denominator
