"""Validation on the data config's eval loader: the exact mean loss over its tokens, on TorchTitan's schedule."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.tensor import DTensor

from mosaic_photon.compat.pipeline_gradients import DividedLoss
from mosaic_photon.dataloader import build_mosaic_eval_dataloader
from mosaic_photon.dataloader.loader import EvalLoader
from mosaic_photon.titan.config import JobConfig
from mosaic_photon.titan.layouts import ParallelDims
from mosaic_photon.titan.parts import IGNORE_INDEX, BaseValidator
from mosaic_photon.titan.tools import logger, utils


class MosaicValidator(BaseValidator):
    """TorchTitan's Validator over Mosaic streams: same samples, same order, each pass; tokens weigh the same.

    TorchTitan averages the batches' means, which weighs tokens of ragged batches more.
    """

    def __init__(  # noqa: PLR0913  (TorchTitan's signature)
        self,
        job_config: JobConfig,
        dp_world_size: int,
        dp_rank: int,
        tokenizer: Any,
        parallel_dims: ParallelDims,
        loss_fn: Callable[..., torch.Tensor],
        validation_context: Callable[[], AbstractContextManager[None]],
        maybe_enable_amp: AbstractContextManager[None],
        metrics_processor: Any,
        pp_schedule: Any = None,
        pp_has_first_stage: bool | None = None,
        pp_has_last_stage: bool | None = None,
        loader: EvalLoader | None = None,
    ) -> None:
        """TorchTitan's arguments, and the loader of the eval data, of any rank, where it is already open."""
        super().__init__(job_config)
        self.parallel_dims = parallel_dims
        self.loss_fn = loss_fn
        if loader is None:
            loader = build_mosaic_eval_dataloader(dp_world_size, dp_rank, tokenizer, job_config)
        loader.layout = dataclasses.replace(loader.layout, dp_rank=dp_rank)
        self.validation_dataloader = loader
        self.validation_context = validation_context
        self.maybe_enable_amp = maybe_enable_amp
        self.metrics_processor = metrics_processor
        self.pp_schedule = pp_schedule
        self.pp_has_first_stage = pp_has_first_stage
        self.pp_has_last_stage = pp_has_last_stage
        self.fire: Callable[..., None] = lambda event, **facts: None
        """Receives Composer's event names; set by the trainer."""
        self.post_dataloading_process: Callable[..., Any] = split_inputs
        """MosaicTrainer sets its own, which also builds attention masks and shards for context parallelism."""

    @torch.no_grad()
    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """Log the mean loss per label over the eval set, or its first `validation.steps` global batches."""
        for model in model_parts:
            model.eval()
        self.fire("eval_start")
        limit = self.job_config.validation.steps
        device = torch.device(utils.device_type)
        totals = torch.zeros(2, dtype=torch.float64, device=device)  # loss summed over labels; labels
        for input_dict, labels in islice(self.validation_dataloader, None if limit == -1 else limit):
            self.fire("eval_batch_start", batch=input_dict | {"labels": labels})
            self.metrics_processor.ntokens_since_last_log += labels.numel()
            inputs = {name: tensor.to(device) for name, tensor in input_dict.items()}
            labels = labels.to(device)
            totals += self._loss_sum_and_labels(model_parts, inputs, labels)
            self.fire("eval_batch_end")
        loss, labels_seen = self._mean_over_ranks(totals)
        if labels_seen:
            self.metrics_processor.log_validation(loss=loss, step=step)
        elif dist.get_rank() == 0:
            logger.warning(f"Validation at step {step} has no loss: all labels of its samples are ignored.")
        self.fire("eval_end", loss=loss)
        for model in model_parts:
            model.train()

    def _loss_sum_and_labels(
        self, model_parts: list[nn.Module], input_dict: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> torch.Tensor:
        """Sum of the losses of this rank's labels, and their number; zeros on pipeline stages without the loss.

        Labels are counted after context parallelism has shared them out.
        """
        inputs, labels, extra_inputs, extra_kwargs = self.post_dataloading_process(input_dict, labels)
        if not self.parallel_dims.pp_enabled:
            with self.validation_context(), self.maybe_enable_amp:
                loss_sum = self.loss_fn(model_parts[0](inputs, **extra_inputs, **extra_kwargs), labels)
            return torch.stack([_plain(loss_sum).double(), (labels != IGNORE_INDEX).sum().double()])
        assert isinstance(self.loss_fn, DividedLoss)
        losses: list[torch.Tensor] = []
        first_stage = ((inputs,), extra_inputs) if self.pp_has_first_stage else ((), {})
        last_stage = {"target": labels, "losses": losses} if self.pp_has_last_stage else {}
        with self.loss_fn.divided_by(1.0), self.validation_context():
            self.pp_schedule.eval(*first_stage[0], **first_stage[1], **extra_kwargs, **last_stage)
        if not self.pp_has_last_stage:
            return torch.zeros(2, dtype=torch.float64, device=labels.device)
        loss_sum = torch.stack([_plain(loss) for loss in losses]).sum().to(labels.device)
        return torch.stack([loss_sum.double(), (labels != IGNORE_INDEX).sum().double()])

    def _mean_over_ranks(self, totals: torch.Tensor) -> tuple[float, int]:
        """The mean loss of a label, nan without labels, and the number of labels."""
        for dimension in ("loss", "pp"):  # stages without the loss add nothing and learn the result
            mesh = self.parallel_dims.get_optional_mesh(dimension)
            if mesh is not None:
                dist.all_reduce(totals, group=mesh.get_group())
        return (totals[0] / totals[1]).item(), int(totals[1])


def _plain(loss: torch.Tensor) -> torch.Tensor:
    return loss.full_tensor() if isinstance(loss, DTensor) else loss  # a DTensor under loss parallelism


def split_inputs(
    input_dict: dict[str, torch.Tensor], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], dict[str, Any]]:
    """TorchTitan's four parts of a batch, for models without attention masks."""
    return input_dict["input"], labels, {k: v for k, v in input_dict.items() if k != "input"}, {}


def build_validator(**kwargs: Any) -> MosaicValidator:
    """TorchTitan's `build_validator_fn`; arguments as MosaicValidator's."""
    return MosaicValidator(**kwargs)
