"""What a checkpoint makes of single samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mosaic_photon.dataloader.tokens import IGNORED
from mosaic_photon.use.opened import Opened
from mosaic_photon.use.trace import Dealt, Run


@torch.no_grad()
def losses_of(run: Run, dealt: Dealt, opened: Opened) -> list[float | None]:
    """The mean loss of each sample over its labels, in nats, as of the micro-batches that the job makes of them.

    None for a sample without labels.
    """
    found: list[float | None] = []
    rows = run.loader.layout.local_batch
    for begin in range(0, len(dealt.ids), rows):
        inputs, labels = run.data.make_batch(dealt.ids[begin : begin + rows])
        logits = opened.logits(inputs["input"]).float()
        labels = labels.to(logits.device)
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        counts = (labels != IGNORED).sum(1)
        means = (losses.double().sum(1) / counts).tolist()
        found += [mean if count else None for mean, count in zip(means, counts.tolist(), strict=True)]
    return found


def worst_first(samples: list[dict[str, Any]], losses: list[float | None]) -> list[dict[str, Any]]:
    """The samples with their losses, those without labels last."""
    order = np.argsort([-math.inf if loss is None else loss for loss in losses], kind="stable")[::-1]
    return [samples[at] | {"loss": losses[at]} for at in order.tolist()]
