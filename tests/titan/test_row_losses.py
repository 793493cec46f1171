"""The loss of each row beside the loss, which stays TorchTitan's to the last bit, and its gradients with it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import mosaic_photon.titan  # noqa: F401  (before TorchTitan)
from mosaic_photon.titan.row_losses import cross_entropy_of_each, keeping_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_and_its_gradients_stay_to_the_last_bit(dtype: torch.dtype) -> None:
    from torchtitan.components.loss import cross_entropy_loss

    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 50, 1000, generator=generator) * 5).to(dtype)
    labels = torch.randint(0, 1000, (3, 50), generator=generator)
    labels[1, 20:] = labels[2] = -100
    kept: list[torch.Tensor] = []
    found: list[tuple[torch.Tensor, Any]] = []
    for loss_fn in (cross_entropy_loss, keeping_rows(cross_entropy_of_each, kept.append)):
        pred = logits.clone().requires_grad_()
        loss = loss_fn(pred, labels)
        (loss / 7).backward()
        found.append((loss.detach(), pred.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    each = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none")
    assert torch.equal(kept[0], each.view(3, 50).sum(1)) and not kept[0].requires_grad
    with torch.no_grad():
        loss_fn(logits, labels)
    assert len(kept) == 1  # validation's rows are none of a stream's
