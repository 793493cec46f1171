"""TorchTitan 0.2.2's Trainer inside this package's loop, with right gradients under pipelining."""

from __future__ import annotations

from typing import Any

import torch
from torchtitan.train import Trainer

from mosaic_photon.compat.ddp_gradients import reduce_in_this_backward
from mosaic_photon.compat.pipeline_gradients import DividedLoss
from mosaic_photon.compat.tensor_parallel_gradients import place_as_parameters
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.checkpointer import Checkpointer
from mosaic_photon.titan.in_loop import InLoop
from mosaic_photon.titan.interface import Parts
from mosaic_photon.titan.v02.spec import put_parts

__all__ = ["MosaicTrainer", "Trainer", "build_trainer"]


def build_trainer(job: MosaicJobConfig, parts: Parts) -> MosaicTrainer:
    """TorchTitan's Trainer of the job, in `parts.loop`."""
    put_parts(job.model.name, parts)
    return MosaicTrainer(job, parts)


class MosaicTrainer(InLoop, Trainer):
    """Trains a `*_mosaic` TrainSpec. Same loop and same checkpoints as TorchTitan's Trainer."""

    titan_trainer, checkpointer_cls = Trainer, Checkpointer

    def __init__(self, job_config: MosaicJobConfig, parts: Parts) -> None:
        self.build(job_config, parts, job_config)

    def post_dataloading_process(
        self, input_dict: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], dict[str, Any]]:
        """TorchTitan's, and what the model asks for on each pipeline stage."""
        inputs, labels, extra_inputs, extra_kwargs = super().post_dataloading_process(input_dict, labels)
        return inputs, labels, extra_inputs, extra_kwargs | self.loop.model_inputs(inputs)

    def forward_backward_step(
        self,
        *,
        input_dict: dict[str, torch.Tensor],
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | float,
    ) -> torch.Tensor:
        """One micro-batch: forward, loss divided by the global batch's labels, backward.

        Args:
            input_dict: "input" LongTensor [B, S], and the model's other keyword inputs.
            labels: LongTensor [B, S], -100 is ignored.
            global_valid_tokens: labels not ignored, in the whole global batch.

        Returns:
            This rank's share of the global batch's mean loss, a scalar; -1 on pipeline stages without the loss.

        Raises:
            NoLabelsError: at the first micro-batch of a step without labels.
        """
        is_last = self.loop.begin_micro_batch(input_dict | {"labels": labels}, global_valid_tokens)
        inputs, labels, extra_inputs, extra_kwargs = self.post_dataloading_process(input_dict, labels)
        if self.parallel_dims.pp_enabled:
            loss = self._pipeline_step(inputs, labels, extra_inputs, extra_kwargs, global_valid_tokens)
            self._finish_gradients(is_last)
            self.fire_of_schedule(loss.detach())
            if self.pp_has_last_stage:
                self.loop.add_loss(loss)
            return loss if self.pp_has_last_stage else torch.full((), -1.0, device=self.device)
        fire = self.loop.fire
        reduce_in_this_backward(self.model_parts[0], is_last)
        with self.train_context():
            with self.maybe_enable_amp:
                prediction = self.model_parts[0](inputs, **extra_inputs, **extra_kwargs)
                fire("after_forward", outputs=prediction)
                fire("before_loss")
                loss = self.loss_fn(prediction, labels) / global_valid_tokens
            fire("after_loss", loss=loss)
            del prediction  # frees the logits before backward
            fire("before_backward")
            loss.backward()
            self._finish_gradients(is_last)
            fire("after_backward")
        self.loop.add_loss(loss)
        return loss

    def _pipeline_step(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        extra_inputs: dict[str, torch.Tensor],
        extra_kwargs: dict[str, Any],
        global_valid_tokens: torch.Tensor | float,
    ) -> torch.Tensor:
        """The schedule runs forward, loss and backward of all its micro-batches; its loss function divides.

        Returns:
            The loss as of `forward_backward_step`, 0 on stages without it.
        """
        assert isinstance(self.loss_fn, DividedLoss)
        losses: list[torch.Tensor] = []
        args = (inputs,) if self.pp_has_first_stage else ()
        kwargs = (extra_inputs if self.pp_has_first_stage else {}) | extra_kwargs
        if self.pp_has_last_stage:
            kwargs |= {"target": labels, "losses": losses}
        with self.loss_fn.divided_by(global_valid_tokens), self.train_context():
            self.pp_schedule.step(*args, **kwargs, return_outputs=False)
        return torch.stack(losses).sum().to(self.device) if losses else torch.zeros((), device=self.device)

    def _finish_gradients(self, is_last: bool) -> None:
        """After a backward pass: make the step's gradients ready to be clipped, if it was the last one."""
        if is_last and self.parallel_dims.tp_enabled:
            place_as_parameters(self.model_parts)
