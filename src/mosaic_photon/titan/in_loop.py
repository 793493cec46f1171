"""What the trainers of all releases have in common: TorchTitan's loop inside this package's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from inspect import unwrap
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.tensor import DTensor
from torchtitan.tools.logging import logger

from mosaic_photon.errors import ConfigError, NotFiniteError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.report import console, recorder
from mosaic_photon.report.record import VALIDATION
from mosaic_photon.titan.gradient_norm import gradient_norm_told
from mosaic_photon.titan.hf_files import fit_files
from mosaic_photon.titan.interface import INSIDE_MICRO_BATCH, Batch, Parts, PassedOverError, TrainLoader
from mosaic_photon.token_bytes import TokenBytes, table_of

Mixed: Any = object
"""Stands for the release's Trainer, which comes after `InLoop` among a trainer's bases."""


class InLoop(Mixed):
    """Mixed into a release's Trainer. Same steps and same checkpoints as TorchTitan's."""

    job_config: MosaicJobConfig
    parts: Parts
    model_args: Any
    checkpointer: Any
    titan_trainer: Any
    """TorchTitan's class."""
    checkpointer_cls: Any
    """What TorchTitan's checkpointer is made into."""
    token_bytes: TokenBytes | None

    def build(self, job: MosaicJobConfig, parts: Parts, config: Any) -> None:
        """TorchTitan's constructor; then the parts, which it builds one by one, are told of each other."""
        self.job_config, self.parts, self.loop = job, parts, parts.loop
        try:
            super().__init__(config)
            self._attach()
        except BaseException:
            self.close()  # what has been built holds files and threads
            raise

    def _attach(self) -> None:
        self.token_bytes = table_of(self.tokenizer)
        self.loop.attach(self)
        self.metrics_processor.attach(self.parts.data.loader, self.loop.metrics)
        if self.job_config.validation.enable:
            self.validator.attach(self.loop.fire, self.post_dataloading_process, self.token_bytes)
            self.validator.validate = recorder.spent(VALIDATION)(self.validator.validate)
        self.checkpointer = self.checkpointer_cls.of(
            self.checkpointer, self.job_config, self.parts.start, self.loop, self.model_args
        )
        if self.checkpointer.enable and self.job_config.checkpoint.last_save_in_hf:
            fit_files(self.checkpointer.sd_adapter, self.checkpointer.states["model"].state_dict())

    def batch_generator(self, data_iterable: TrainLoader) -> Iterator[Batch]:
        """TorchTitan's; called once, when the checkpoint has been loaded and before the first step."""
        self.loaded_step = self.step
        console.stage("the first step, which may fetch and compile")
        self.loop.begin()
        if record := recorder.current():
            record.start()
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
        console.stop()

    def _look_at_step(self, norm: torch.Tensor) -> None:
        if self.job_config.optimizer.early_step_in_backward:  # the gradients are gone, what they did is in the weights
            norm = torch.nn.utils.get_total_norm([local(p) for part in self.model_parts for p in part.parameters()])
        self.loop.look_at_step(norm)

    def fire_of_schedule(self, loss: torch.Tensor) -> None:
        """A micro-batch's events where a pipeline or a CUDA graph runs its passes: all after it, with its loss."""
        for event in INSIDE_MICRO_BATCH:
            self.loop.fire(event, loss=loss)

    def train(self) -> None:
        """TorchTitan's loop. Torch keeps errors for its launcher, which shows their tracebacks; a stop is none."""
        if stopped := record(self._train)():
            raise stopped

    def _train(self) -> NotFiniteError | ConfigError | None:
        try:
            unwrap(self.titan_trainer.train)(self)
            self.loop.check_sound()
        except (NotFiniteError, ConfigError) as stopped:
            return stopped
        self.loop.fire("fit_end")
        return None

    def finish_saving(self) -> None:
        """Wait until what is being saved is written."""
        if self.checkpointer.enable:
            self.checkpointer.finish()

    @property
    def last_metrics(self) -> dict[str, Any]:
        """What has been logged last, see `MosaicMetricsProcessor.last`."""
        return self.metrics_processor.last

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
