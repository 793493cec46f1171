"""Validation on 0.3: the package's, whose model calls and losses have another form."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn as nn
from torchtitan.components.loss import IGNORE_INDEX

from mosaic_photon.titan import validator
from mosaic_photon.titan.interface import EvalLoader


class MosaicValidator(validator.MosaicValidator):
    """See its base."""

    def __init__(self, job_config: Any, loaders: Mapping[str, EvalLoader], **given: Any) -> None:
        """given: what TorchTitan hands to a validator's `build`, of which some is not needed here."""
        names = ("parallel_dims", "loss_fn", "validation_context", "metrics_processor", "pp_schedule",
                 "pp_has_first_stage", "pp_has_last_stage")  # fmt: skip
        super().__init__(job_config, loaders, maybe_enable_amp=nullcontext(), **{name: given[name] for name in names})
        self.config = job_config.validation
        self.micro_batch = job_config.parallelism.pipeline_parallel_microbatch_size

    def _loss_sum_and_labels(
        self, model_parts: list[nn.Module], input_dict: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> torch.Tensor:
        """As its base."""
        if not self.parallel_dims.pp_enabled:
            inputs, labels, extra = self.split(input_dict, labels)
            with self.validation_context():
                loss_sum, _ = self.loss_fn(model_parts[0](inputs, **extra), labels)
            return sum_and_labels([loss_sum], [labels])
        parts = [self.split(*part) for part in micro_batches(input_dict, labels, self.micro_batch)]
        targets = [labels for _, labels, _ in parts]
        losses: list[torch.Tensor] = []
        with self.validation_context():
            self.pp_schedule.eval(
                arg_mbs=[(inputs,) for inputs, _, _ in parts] if self.pp_has_first_stage else None,
                kwarg_mbs=[extra for _, _, extra in parts],
                target_mbs=targets if self.pp_has_last_stage else None,
                losses=losses if self.pp_has_last_stage else None,
            )
        if not self.pp_has_last_stage:
            return torch.zeros(2, dtype=torch.float64, device=labels.device)
        return sum_and_labels(losses, targets)


def sum_and_labels(losses: list[torch.Tensor], labels: list[torch.Tensor]) -> torch.Tensor:
    """Both in float64, on the labels' device."""
    device = labels[0].device
    count = sum((part != IGNORE_INDEX).sum() for part in labels)
    return torch.stack([torch.stack([loss.to(device) for loss in losses]).sum().double(), count.double()])


def micro_batches(
    input_dict: dict[str, torch.Tensor], labels: torch.Tensor, size: int
) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """A batch in parts of `size` samples, which 0.3's pipelines are given one by one."""
    return [
        ({name: tensor[at : at + size] for name, tensor in input_dict.items()}, labels[at : at + size])
        for at in range(0, len(labels), size)
    ]
