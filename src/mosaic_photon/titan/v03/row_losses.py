"""0.3's cross-entropy with the loss of each row beside it."""

from __future__ import annotations

from typing import Any, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torchtitan.components.loss import CrossEntropyLoss, _LossParallelCrossEntropy
from torchtitan.distributed.spmd_types import current_spmd_mesh, spmd_mesh_size
from torchtitan.distributed.utils import get_spmd_backend

from mosaic_photon.titan.row_losses import KeepRows, cross_entropy_of_each, keeping_rows


class RowLosses(CrossEntropyLoss):
    """TorchTitan's, which gives `keep` what each row has of it."""

    def __init__(self, config: CrossEntropyLoss.Config, *, keep: KeepRows, compile_config: Any = None) -> None:
        self.global_vocab_size, self.fn = config.global_vocab_size, cast(Any, loss_of_each)
        self._maybe_compile(compile_config)
        self.fn = keeping_rows(self.fn, keep)


def loss_of_each(pred: Tensor, labels: Tensor, *, global_vocab_size: int | None = None) -> tuple[Tensor, Tensor]:
    """TorchTitan's `cross_entropy_loss` to the last bit, and each label's, see `cross_entropy_of_each`."""
    group = vocabulary_group(pred)
    if group is None:
        return cross_entropy_of_each(pred, labels)
    local, size = (pred.to_local(), pred.shape[-1]) if isinstance(pred, DTensor) else (pred, global_vocab_size)
    logits, targets = local.flatten(0, 1).float(), labels.flatten(0, 1)
    each = _LossParallelCrossEntropy.apply(logits, targets, group, size, "none")
    return each.sum(), each.detach()


def vocabulary_group(pred: Tensor) -> dist.ProcessGroup | None:
    """The ranks that share out the logits' last dimension, as TorchTitan tells it; None where each has all of it."""
    if isinstance(pred, DTensor):
        return pred.device_mesh.get_group("tp") if pred.placements == (Shard(pred.ndim - 1),) else None
    is_shared = get_spmd_backend() == "spmd_types" and spmd_mesh_size("tp") > 1
    return current_spmd_mesh().get_group("tp") if is_shared else None
