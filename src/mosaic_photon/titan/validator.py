"""Validation on the data config's eval sets: the exact mean loss over each's tokens, on TorchTitan's schedule."""

import math
from collections.abc import Callable, Mapping
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
from mosaic_photon.token_bytes import TokenBytes, numbers_of


class MosaicValidator(BaseValidator):
    """TorchTitan's Validator over Mosaic streams: same samples, same order, each pass; tokens weigh the same.

    TorchTitan averages the batches' means, which weighs tokens of ragged batches more.
    """

    def __init__(  # noqa: PLR0913  (TorchTitan's signature)
        self,
        job_config: MosaicJobConfig,
        loaders: Mapping[str, EvalLoader],
        parallel_dims: ParallelDims,
        loss_fn: Callable[..., torch.Tensor],
        validation_context: Callable[[], AbstractContextManager[None]],
        maybe_enable_amp: AbstractContextManager[None],
        metrics_processor: Any,
        pp_schedule: Any = None,
        pp_has_first_stage: bool | None = None,
        pp_has_last_stage: bool | None = None,
    ) -> None:
        """TorchTitan's arguments, and this rank's loaders by label in place of what one would be built from."""
        super().__init__(job_config)
        self.job_config = job_config
        self.parallel_dims = parallel_dims
        self.loss_fn = loss_fn
        self.loaders = loaders
        self.validation_context = validation_context
        self.maybe_enable_amp = maybe_enable_amp
        self.metrics_processor = metrics_processor
        self.pp_schedule = pp_schedule
        self.pp_has_first_stage = pp_has_first_stage
        self.pp_has_last_stage = pp_has_last_stage
        self.fire: Callable[..., None] = lambda event, **facts: None
        self.split: Callable[..., Any] = split_inputs
        self.token_bytes: TokenBytes | None = None

    def attach(self, fire: Callable[..., None], split: Callable[..., Any], token_bytes: TokenBytes | None) -> None:
        """Take part in a job's loop.

        Args:
            fire: receives Composer's event names.
            split: the trainer's `post_dataloading_process`, which builds attention masks and shards for context
                parallelism.
            token_bytes: of the tokenizer, None where there are no bits per byte.
        """
        self.fire, self.split, self.token_bytes = fire, split, token_bytes

    @torch.no_grad()
    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """Log the mean loss per label over each eval set, or over its first `validation.steps` global batches."""
        for model in model_parts:
            model.eval()
        self.fire("eval_before_all")
        for name in self.loaders:
            self._validate_set(name, model_parts, step)
        self.fire("eval_after_all")
        for model in model_parts:
            model.train()

    def _validate_set(self, name: str, model_parts: list[nn.Module], step: int) -> None:
        """One set, with Composer's events of an evaluator."""
        self.fire("eval_start", label=name)
        limit, loader = self.job_config.validation.steps, self.loaders[name]
        device = torch.device(utils.device_type)
        totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss summed over labels; labels; their bytes
        for input_dict, labels in islice(loader, None if limit == -1 else limit):
            self.fire("eval_batch_start", batch=input_dict | {"labels": labels})
            self.metrics_processor.ntokens_since_last_log += labels.numel()
            totals[2] += self.token_bytes.of_batch(input_dict, labels) if self.token_bytes else 0
            inputs = {name: tensor.to(device) for name, tensor in input_dict.items()}
            totals[:2] += self._loss_sum_and_labels(model_parts, inputs, labels.to(device))
            self.fire("eval_batch_end")
        for module in chain.from_iterable(model.modules() for model in model_parts):
            if isinstance(module, FSDPModule):  # which does so after a backward pass only; a stop may save now
                module.reshard()
        loss, labels_seen, text_bytes = self._sums_over_ranks(totals)
        if labels_seen:
            numbers = numbers_of(loss / labels_seen, labels_seen, text_bytes)
            known = {metric: value for metric, value in numbers.items() if value is not None}
            self.metrics_processor.log_set(name, known, step)
        elif dist.get_rank() == 0:
            of = f" of {name!r}" if name else ""
            logger.warning(f"Validation{of} at step {step} has no loss: all labels of its samples are ignored.")
        self.fire("eval_end", label=name, loss=loss / labels_seen if labels_seen else math.nan)

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

    def _sums_over_ranks(self, totals: torch.Tensor) -> tuple[float, int, int]:
        """The losses of all labels, the number of labels, and the bytes that they stand for."""
        loss, labels, text_bytes = sum_of_losses(totals, self.parallel_dims).tolist()
        # Ranks that share a batch have counted its bytes alike, and those that `sum_of_losses` takes in, each of them.
        return loss, int(labels), int(text_bytes) // (self.parallel_dims.cp * self.parallel_dims.pp)


def split_inputs(
    input_dict: dict[str, torch.Tensor], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], dict[str, Any]]:
    """TorchTitan's four parts of a batch, for models without attention masks."""
    return input_dict["input"], labels, {k: v for k, v in input_dict.items() if k != "input"}, {}


def build_validator(build_loaders: Callable[..., Mapping[str, EvalLoader]]) -> Callable[..., MosaicValidator]:
    """TorchTitan's `build_validator_fn`, on loaders from (dp_world_size, dp_rank, tokenizer, job_config)."""

    def build(
        dp_world_size: int, dp_rank: int, tokenizer: Any, job_config: MosaicJobConfig, **kwargs: Any
    ) -> MosaicValidator:
        given = {"dp_world_size": dp_world_size, "dp_rank": dp_rank, "tokenizer": tokenizer, "job_config": job_config}
        return MosaicValidator(job_config, build_loaders(**given), **kwargs)

    return build
