"""The loss of each row of a batch, beside the loss that a model learns by, which stays what it is."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaic_photon.titan.layouts import whole
from mosaic_photon.titan.parts import IGNORE_INDEX

KeepRows = Callable[[Tensor], None]
"""Is given float32 [B], each row's sum of its labels' losses in nats, of one part of a micro-batch after another."""


def cross_entropy_of_each(pred: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """TorchTitan's `cross_entropy_loss` to the last bit, by the two halves that torch makes it of, and each label's.

    Args:
        pred: logits [B, S, V]; under loss parallelism a DTensor.
        labels: int64 [B, S], -100 where ignored.

    Returns:
        The sum over all labels; and, without gradients, each label's loss [B * S], 0 where ignored.
    """
    log_probs, targets = F.log_softmax(pred.flatten(0, 1).float(), dim=-1), labels.flatten(0, 1)
    loss = F.nll_loss(log_probs, targets, reduction="sum", ignore_index=IGNORE_INDEX)
    with torch.no_grad():
        return loss, F.nll_loss(log_probs, targets, reduction="none", ignore_index=IGNORE_INDEX)


def keeping_rows(loss_of_each: Callable[..., tuple[Tensor, Tensor]], keep: KeepRows) -> Callable[..., Tensor]:
    """A loss function like TorchTitan's; in training `keep` is given what its rows have of it."""

    def loss_fn(pred: Tensor, labels: Tensor, **more: Any) -> Tensor:
        loss, each = loss_of_each(pred, labels, **more)
        if torch.is_grad_enabled():
            keep(whole(each.detach()).view(labels.shape).sum(1))
        return loss

    return loss_fn
