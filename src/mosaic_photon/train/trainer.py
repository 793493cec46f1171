"""MosaicTrainer: TorchTitan's Trainer with Composer's events, right gradients under pipelining, and a clean stop."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from inspect import unwrap
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.tensor import DTensor

from mosaic_photon.callbacks.host import CallbackHost
from mosaic_photon.callbacks.registry import build_callbacks
from mosaic_photon.checkpoints.find import find_start
from mosaic_photon.checkpoints.hf import fit_files
from mosaic_photon.checkpoints.manager import Checkpointer
from mosaic_photon.compat.ddp_gradients import reduce_in_this_backward
from mosaic_photon.compat.pipeline_gradients import DividedLoss
from mosaic_photon.compat.tensor_parallel_gradients import place_as_parameters
from mosaic_photon.dataloader import DataSpecDataLoader
from mosaic_photon.dataloader.documents import document_counter
from mosaic_photon.dataloader.progress import differences
from mosaic_photon.errors import ConfigError, NotFiniteError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.parts import IGNORE_INDEX
from mosaic_photon.titan.tools import logger
from mosaic_photon.titan.trainer import Trainer, gradient_norm_told
from mosaic_photon.train.finite import FiniteSteps, SkippedStepError
from mosaic_photon.train.stop import GracefulStop

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]


class NoLabelsError(Exception):
    """All labels of a global batch are ignored: its loss is 0 / 0. Raised on all ranks alike."""


class MosaicTrainer(Trainer):
    """Trains a `*_mosaic` TrainSpec. Same construction, same loop and same checkpoints as TorchTitan's Trainer."""

    job_config: MosaicJobConfig
    dataloader: DataSpecDataLoader

    def __init__(self, job_config: MosaicJobConfig, stop: GracefulStop) -> None:
        callbacks = build_callbacks(job_config.callbacks)  # mistakes come to light before a model is built
        self.stop = stop
        self.start = find_start(job_config)
        try:
            super().__init__(job_config)
            self._complete(callbacks)
        except BaseException:
            self.close()  # what has been built holds files and threads
            raise

    def _complete(self, callbacks: dict[str, Any]) -> None:
        """Tell the parts of each other, which TorchTitan builds one by one."""
        self._check_same_on_all_ranks()
        self.count_documents = document_counter(self.model_args, self.job_config.mosaic.dataloader["dataset"])
        self.metrics_processor.dataloader = self.dataloader
        if self.job_config.validation.enable:
            self.validator.fire = self.fire
            self.validator.post_dataloading_process = self.post_dataloading_process
        self.callbacks = CallbackHost(callbacks)
        self.callbacks.attach(self)
        self.finite = FiniteSteps(self.job_config.mosaic.nonfinite, self.parallel_dims.tp, self._how_to_go_on)
        self.checkpointer.states["callbacks"] = self.callbacks
        Checkpointer.of(
            self.checkpointer, self.start, self.job_config.mosaic.allow_partial_load, self._check_finite_so_far
        )
        if self.checkpointer.enable and self.job_config.checkpoint.last_save_in_hf:
            fit_files(self.checkpointer.sd_adapter, self.checkpointer.states["model"].state_dict())

    def _check_same_on_all_ranks(self) -> None:
        """Raise ConfigError where ranks would read other data or begin elsewhere: a node's config or files differ."""
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, (self.dataloader.marks, self.start))
        marks, first = gathered[0]
        for rank, (theirs, start) in enumerate(gathered):
            if start != first:
                raise ConfigError(
                    f"ranks see different checkpoints. Rank 0: {first}. Rank {rank}: {start}. job.dump_folder and "
                    "checkpoint.initial_load_path must be on a file system that all nodes share."
                )
            if difference := differences(marks, theirs):
                raise ConfigError(
                    f"ranks would read different data (rank 0 -> rank {rank}):\n{difference}\n"
                    "Give every node the same data config, and remove a cache whose index.json is out of date."
                )

    def fire(self, event: str, **facts: Any) -> None:
        """Run one of Composer's events; without callbacks nothing happens."""
        self.callbacks.fire(event, **facts)

    def train(self) -> None:
        """TorchTitan's loop. Torch keeps errors for its launcher, which shows their tracebacks; a stop is none."""
        if stopped := record(self._train)():
            raise stopped

    def _train(self) -> NotFiniteError | None:
        try:
            unwrap(Trainer.train)(self)
            self._check_finite_so_far()
        except NotFiniteError as stopped:
            return stopped
        self.fire("fit_end")
        return None

    def batch_generator(self, data_iterable: DataSpecDataLoader) -> Iterator[Batch]:
        """TorchTitan's; called once, when the checkpoint has been loaded and before the first step."""
        self.stop.activate()
        self.loaded_step = self.step
        self.fire("fit_start")
        if self.checkpointer.enable:
            self.callbacks.state_dict()  # a callback whose state cannot be saved fails now, not in the first save
        return self._counted(super().batch_generator(data_iterable))

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Where one rank reads all data, count labels here: the step's count would have to leave the device."""
        for input_dict, labels in batches:
            if not self.parallel_dims.dp_enabled:
                count = int((labels != IGNORE_INDEX).sum())
                self.labels_of_step += count
                self.dataloader.add_loss_tokens(count)
            yield input_dict, labels

    def should_continue_training(self) -> bool:
        """TorchTitan's, and nobody has asked for a stop, which first writes a checkpoint. Collective."""
        self.fire("batch_checkpoint")
        asked = self.stop.agreed() or self.callbacks.stop_requested
        if not super().should_continue_training():
            return False
        if asked:
            self._save_now()
        return not asked

    def train_step(self, data_iterator: Iterator[Batch]) -> None:
        """TorchTitan's step between Composer's `before_dataloader` and `batch_end`."""
        self.stop.begin_step()
        self.microbatches_left = self.gradient_accumulation_steps
        self.labels_of_step = 0
        self.begin = self.dataloader.progress
        self.finite.begin()
        self.fire("before_dataloader")
        try:
            with gradient_norm_told(self._look_at_step):
                super().train_step(data_iterator)
        except NoLabelsError:
            if dist.get_rank() == 0:
                logger.warning(
                    f"Step {self.step} makes no optimizer step: all labels of its batch are ignored, as in padding "
                    f"({self.dataloader.describe(self.begin)})."
                )
            self._pass_over()
        except SkippedStepError:
            self._pass_over()
        self.finite.check(before=self.step)
        self.fire("batch_end")
        self.stop.end_step()

    def _pass_over(self) -> None:
        """End a step without the optimizer's: the schedule and the data go on, the weights and the optimizer stay."""
        self.fire("after_train_batch")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.lr_schedulers.step()

    def _look_at_step(self, norm: torch.Tensor) -> None:
        if self.job_config.optimizer.early_step_in_backward:  # the gradients are gone, what they did is in the weights
            norm = torch.nn.utils.get_total_norm([local(p) for part in self.model_parts for p in part.parameters()])
        self.finite.look(self.step, partial(self.dataloader.describe, self.begin), norm)

    def _check_finite_so_far(self) -> None:
        self.finite.check(before=self.step + 1)

    def _how_to_go_on(self) -> str:
        if self.checkpointer.enable:
            self.checkpointer._async_wait()  # what was sound is written before the job ends
        begins = (
            "goes on from the newest checkpoint" if self.checkpointer.enable else "begins anew, as nothing is saved"
        )
        return (
            f"The same command {begins}; a lower optimizer.lr or training.max_norm, a longer warm-up, or "
            '[mosaic] nonfinite = "skip", which makes no optimizer step of such a batch, may bring it past this one.'
        )

    def post_dataloading_process(
        self, input_dict: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], dict[str, Any]]:
        """TorchTitan's, and `sequence_id` for each pipeline stage of a model that keeps documents apart."""
        inputs, labels, extra_inputs, extra_kwargs = super().post_dataloading_process(input_dict, labels)
        if self.count_documents is not None:
            extra_kwargs["sequence_id"] = self.count_documents(inputs)
        return inputs, labels, extra_inputs, extra_kwargs

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
        if self.microbatches_left == self.gradient_accumulation_steps:
            if self.parallel_dims.dp_enabled:
                self.labels_of_step = int(global_valid_tokens)
                self.dataloader.add_loss_tokens(self.labels_of_step)
            self.fire("batch_start", batch=input_dict | {"labels": labels})
            if self.labels_of_step == 0:
                raise NoLabelsError
        self.microbatches_left -= 1
        self.fire("before_forward", batch=input_dict | {"labels": labels})
        inputs, labels, extra_inputs, extra_kwargs = self.post_dataloading_process(input_dict, labels)
        if self.parallel_dims.pp_enabled:
            loss = self._pipeline_step(inputs, labels, extra_inputs, extra_kwargs, global_valid_tokens)
            if self.pp_has_last_stage:
                self.finite.add(loss)
            return loss
        reduce_in_this_backward(self.model_parts[0], self.microbatches_left == 0)
        with self.train_context():
            with self.maybe_enable_amp:
                prediction = self.model_parts[0](inputs, **extra_inputs, **extra_kwargs)
                self.fire("after_forward", outputs=prediction)
                self.fire("before_loss")
                loss = self.loss_fn(prediction, labels) / global_valid_tokens
            self.fire("after_loss", loss=loss)
            del prediction  # frees the logits before backward
            self.fire("before_backward")
            loss.backward()
            self._finish_gradients()
            self.fire("after_backward")
        self.finite.add(loss)
        return loss

    def _pipeline_step(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        extra_inputs: dict[str, torch.Tensor],
        extra_kwargs: dict[str, Any],
        global_valid_tokens: torch.Tensor | float,
    ) -> torch.Tensor:
        """The schedule runs forward, loss and backward of all its micro-batches; its loss function divides."""
        assert isinstance(self.loss_fn, DividedLoss)
        losses: list[torch.Tensor] = []
        args = (inputs,) if self.pp_has_first_stage else ()
        kwargs = (extra_inputs if self.pp_has_first_stage else {}) | extra_kwargs
        if self.pp_has_last_stage:
            kwargs |= {"target": labels, "losses": losses}
        with self.loss_fn.divided_by(global_valid_tokens), self.train_context():
            self.pp_schedule.step(*args, **kwargs, return_outputs=False)
        self._finish_gradients()
        loss = torch.stack(losses).sum().to(self.device) if losses else torch.zeros((), device=self.device)
        for event in ("after_forward", "before_loss", "after_loss", "before_backward", "after_backward"):
            self.fire(event, loss=loss.detach())  # the schedule has interleaved them
        return loss if self.pp_has_last_stage else torch.full((), -1.0, device=self.device)

    def _finish_gradients(self) -> None:
        """After a backward pass: make the step's gradients ready to be clipped, if it was the last one."""
        if self.parallel_dims.tp_enabled and self.microbatches_left == 0:
            place_as_parameters(self.model_parts)

    def close(self) -> None:
        """Release callbacks, checkpointer, metrics and data; safe to call twice and after a failed construction."""
        with ExitStack() as stack:  # each is closed, whatever happens to the others
            if hasattr(self, "dataloader") and self.dataloader is not None:
                stack.callback(self.dataloader.close)
            if hasattr(self, "validator"):
                stack.callback(self.validator.validation_dataloader.close)
            stack.callback(super().close)
            if hasattr(self, "callbacks"):
                stack.callback(self.callbacks.close)

    def _save_now(self) -> None:
        """Where checkpointing is on, write a complete checkpoint of the current step unless it was just written."""
        checkpointer = self.checkpointer
        if not checkpointer.enable or checkpointer.load_only or self.step == self.loaded_step:
            logger.info(f"Stopped at step {self.step}.")
            return
        if not checkpointer._should_save(self.step, last_step=False):
            checkpointer.interval = 1  # TorchTitan saves completely only on the interval
            checkpointer.save(self.step)
        checkpointer._async_wait()
        logger.info(f"Stopped at step {self.step}; its checkpoint is complete.")


def local(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of a parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
