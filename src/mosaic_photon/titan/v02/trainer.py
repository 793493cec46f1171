"""TorchTitan 0.2.2's Trainer inside this package's loop, with right gradients under pipelining."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from inspect import unwrap
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.tensor import DTensor
from torchtitan.tools.logging import logger
from torchtitan.train import Trainer

from mosaic_photon.compat.ddp_gradients import reduce_in_this_backward
from mosaic_photon.compat.pipeline_gradients import DividedLoss
from mosaic_photon.compat.tensor_parallel_gradients import place_as_parameters
from mosaic_photon.errors import NotFiniteError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.interface import Batch, Parts, PassedOverError, TrainLoader
from mosaic_photon.titan.v02.checkpointer import Checkpointer
from mosaic_photon.titan.v02.gradient_norm import gradient_norm_told
from mosaic_photon.titan.v02.hf_files import fit_files
from mosaic_photon.titan.v02.spec import put_parts

__all__ = ["MosaicTrainer", "Trainer", "build_trainer"]


def build_trainer(job: MosaicJobConfig, parts: Parts) -> MosaicTrainer:
    """TorchTitan's Trainer of the job, in `parts.loop`."""
    put_parts(job.model.name, parts)
    return MosaicTrainer(job, parts)


class MosaicTrainer(Trainer):
    """Trains a `*_mosaic` TrainSpec. Same loop and same checkpoints as TorchTitan's Trainer."""

    job_config: MosaicJobConfig
    checkpointer: Checkpointer
    """TorchTitan's own until `_attach`."""

    def __init__(self, job_config: MosaicJobConfig, parts: Parts) -> None:
        self.parts, self.loop = parts, parts.loop
        try:
            super().__init__(job_config)
            self._attach()
        except BaseException:
            self.close()  # what has been built holds files and threads
            raise

    def _attach(self) -> None:
        """Tell the parts of each other, which TorchTitan builds one by one."""
        self.loop.attach(self)
        self.metrics_processor.attach(self.parts.data.loader)
        if self.job_config.validation.enable:
            self.validator.attach(self.loop.fire, self.post_dataloading_process)
        partial = self.job_config.mosaic.allow_partial_load
        self.checkpointer = Checkpointer.of(self.checkpointer, self.parts.start, self.loop, self.model_args, partial)
        if self.checkpointer.enable and self.job_config.checkpoint.last_save_in_hf:
            fit_files(self.checkpointer.sd_adapter, self.checkpointer.states["model"].state_dict())

    def batch_generator(self, data_iterable: TrainLoader) -> Iterator[Batch]:
        """TorchTitan's; called once, when the checkpoint has been loaded and before the first step."""
        self.loaded_step = self.step
        self.loop.begin()
        return self.loop.counted(super().batch_generator(data_iterable))

    def should_continue_training(self) -> bool:
        """TorchTitan's, and nobody has asked for a stop, which first writes a checkpoint. Collective."""
        wants_stop = self.loop.wants_stop()
        if not super().should_continue_training():
            return False
        if wants_stop:
            saved = self.step != self.loaded_step and self.checkpointer.save_now(self.step)
            logger.info(f"Stopped at step {self.step}{'; its checkpoint is complete' if saved else ''}.")
        return not wants_stop

    def train_step(self, data_iterator: Iterator[Batch]) -> None:
        """TorchTitan's step, or what is left of one that makes no optimizer step."""
        self.loop.begin_step()
        try:
            with gradient_norm_told(self._look_at_step):
                super().train_step(data_iterator)
        except PassedOverError as why:
            self.loop.pass_over(why)
        self.loop.end_step()

    def _look_at_step(self, norm: torch.Tensor) -> None:
        if self.job_config.optimizer.early_step_in_backward:  # the gradients are gone, what they did is in the weights
            norm = torch.nn.utils.get_total_norm([local(p) for part in self.model_parts for p in part.parameters()])
        self.loop.look_at_step(norm)

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
        fire = self.loop.fire
        is_last = self.loop.begin_micro_batch(input_dict | {"labels": labels}, global_valid_tokens)
        inputs, labels, extra_inputs, extra_kwargs = self.post_dataloading_process(input_dict, labels)
        if self.parallel_dims.pp_enabled:
            loss = self._pipeline_step(inputs, labels, extra_inputs, extra_kwargs, global_valid_tokens)
            self._finish_gradients(is_last)
            for event in ("after_forward", "before_loss", "after_loss", "before_backward", "after_backward"):
                fire(event, loss=loss.detach())  # the schedule has interleaved them
            if self.pp_has_last_stage:
                self.loop.add_loss(loss)
            return loss if self.pp_has_last_stage else torch.full((), -1.0, device=self.device)
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

    def train(self) -> None:
        """TorchTitan's loop. Torch keeps errors for its launcher, which shows their tracebacks; a stop is none."""
        if stopped := record(self._train)():
            raise stopped

    def _train(self) -> NotFiniteError | None:
        try:
            unwrap(Trainer.train)(self)
            self.loop.check_sound()
        except NotFiniteError as stopped:
            return stopped
        self.loop.fire("fit_end")
        return None

    def finish_saving(self) -> None:
        """Wait until what is being saved is written."""
        if self.checkpointer.enable:
            self.checkpointer.finish()

    def save_seed(self) -> None:
        """The drawn weights as the checkpoint of step 0, by which other layouts begin from the same."""
        self.checkpointer.save(curr_step=0, last_step=True)

    def close(self) -> None:
        """Release loop, checkpointer and metrics; safe to call twice and after a failed construction."""
        with ExitStack() as stack:  # each is closed, whatever happens to the others
            stack.callback(super().close)
            stack.callback(self.loop.close)


def local(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of a parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
