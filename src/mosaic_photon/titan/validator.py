"""Validation on the data config's eval loader: the exact mean loss over its tokens, on TorchTitan's schedule."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import chain, islice
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.fsdp import FSDPModule
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.components.validate import BaseValidator
from torchtitan.distributed import ParallelDims
from torchtitan.tools import utils
from torchtitan.tools.logging import logger

from mosaic_photon.compat.pipeline_gradients import DividedLoss
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.interface import EvalLoader
from mosaic_photon.titan.layouts import sum_of_losses, whole


class MosaicValidator(BaseValidator):
    """TorchTitan's Validator over Mosaic streams: same samples, same order, each pass; tokens weigh the same.

    TorchTitan averages the batches' means, which weighs tokens of ragged batches more.
    """

    def __init__(  # noqa: PLR0913  (TorchTitan's signature)
        self,
        job_config: MosaicJobConfig,
        loader: EvalLoader,
        parallel_dims: ParallelDims,
        loss_fn: Callable[..., torch.Tensor],
        validation_context: Callable[[], AbstractContextManager[None]],
        maybe_enable_amp: AbstractContextManager[None],
        metrics_processor: Any,
        pp_schedule: Any = None,
        pp_has_first_stage: bool | None = None,
        pp_has_last_stage: bool | None = None,
    ) -> None:
        """TorchTitan's arguments, and this rank's loader of the eval data in place of what it would be built from."""
        super().__init__(job_config)
        self.job_config = job_config
        self.parallel_dims = parallel_dims
        self.loss_fn = loss_fn
        self.validation_dataloader = loader
        self.validation_context = validation_context
        self.maybe_enable_amp = maybe_enable_amp
        self.metrics_processor = metrics_processor
        self.pp_schedule = pp_schedule
        self.pp_has_first_stage = pp_has_first_stage
        self.pp_has_last_stage = pp_has_last_stage
        self.fire: Callable[..., None] = lambda event, **facts: None
        self.split: Callable[..., Any] = split_inputs

    def attach(self, fire: Callable[..., None], split: Callable[..., Any]) -> None:
        """Take part in a job's loop.

        Args:
            fire: receives Composer's event names.
            split: the trainer's `post_dataloading_process`, which builds attention masks and shards for context
                parallelism.
        """
        self.fire, self.split = fire, split

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
        for module in chain.from_iterable(model.modules() for model in model_parts):
            if isinstance(module, FSDPModule):  # which does so after a backward pass only; a stop may save now
                module.reshard()
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
        inputs, labels, extra_inputs, extra_kwargs = self.split(input_dict, labels)
        if not self.parallel_dims.pp_enabled:
            with self.validation_context(), self.maybe_enable_amp:
                loss_sum = self.loss_fn(model_parts[0](inputs, **extra_inputs, **extra_kwargs), labels)
            return torch.stack([whole(loss_sum).double(), (labels != IGNORE_INDEX).sum().double()])
        assert isinstance(self.loss_fn, DividedLoss)
        losses: list[torch.Tensor] = []
        first_stage = ((inputs,), extra_inputs) if self.pp_has_first_stage else ((), {})
        last_stage = {"target": labels, "losses": losses} if self.pp_has_last_stage else {}
        with self.loss_fn.divided_by(1.0), self.validation_context():
            self.pp_schedule.eval(*first_stage[0], **first_stage[1], **extra_kwargs, **last_stage)
        if not self.pp_has_last_stage:
            return torch.zeros(2, dtype=torch.float64, device=labels.device)
        loss_sum = torch.stack([whole(loss) for loss in losses]).sum().to(labels.device)
        return torch.stack([loss_sum.double(), (labels != IGNORE_INDEX).sum().double()])

    def _mean_over_ranks(self, totals: torch.Tensor) -> tuple[float, int]:
        """The mean loss of a label, nan without labels, and the number of labels."""
        totals = sum_of_losses(totals, self.parallel_dims)
        return (totals[0] / totals[1]).item(), int(totals[1])


def split_inputs(
    input_dict: dict[str, torch.Tensor], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], dict[str, Any]]:
    """TorchTitan's four parts of a batch, for models without attention masks."""
    return input_dict["input"], labels, {k: v for k, v in input_dict.items() if k != "input"}, {}


def build_validator(build_loader: Callable[..., EvalLoader]) -> Callable[..., MosaicValidator]:
    """TorchTitan's `build_validator_fn`, on a loader from (dp_world_size, dp_rank, tokenizer, job_config)."""

    def build(
        dp_world_size: int, dp_rank: int, tokenizer: Any, job_config: MosaicJobConfig, **kwargs: Any
    ) -> MosaicValidator:
        loader = build_loader(dp_world_size=dp_world_size, dp_rank=dp_rank, tokenizer=tokenizer, job_config=job_config)
        return MosaicValidator(job_config, loader, **kwargs)

    return build
