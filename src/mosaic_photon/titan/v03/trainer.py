"""TorchTitan 0.3's Trainer inside this package's loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import spmd_types as spmd
import torch
from torchtitan.components.optimizer import register_moe_load_balancing_hook
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

from mosaic_photon.compat import titan_finite_loss
from mosaic_photon.job.documents import masks_by_end_token, separators
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.in_loop import InLoop
from mosaic_photon.titan.interface import Batch, Parts, TrainLoader
from mosaic_photon.titan.v03.checkpointer import Checkpointer
from mosaic_photon.titan.v03.config import Made, job_tables
from mosaic_photon.titan.v03.row_losses import RowLosses
from mosaic_photon.titan.v03.validator import MosaicValidator, micro_batches


def build_trainer(job: MosaicJobConfig, parts: Parts) -> MosaicTrainer:
    """TorchTitan's Trainer of the job, in `parts.loop`."""
    titan_finite_loss.apply()
    return MosaicTrainer(job, parts)


class MosaicTrainer(InLoop, Trainer):
    """Trains a model of `spec`. Same loop as TorchTitan's Trainer."""

    titan_trainer, checkpointer_cls = Trainer, Checkpointer
    ntokens_seen: int
    rows_of_graph: torch.Tensor
    """What a CUDA graph writes of each row's loss, anew in each replay."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        job: MosaicJobConfig

        def to_dict(self) -> dict[str, Any]:
            """What W&B is told."""
            return self.job.to_dict()

        def maybe_log(self) -> None:
            """The job's own."""
            self.job.maybe_log()

    def __init__(self, job_config: MosaicJobConfig, parts: Parts) -> None:
        self.build(job_config, parts, config_of(self, job_config, parts))

    def batch_generator(self, data_iterable: TrainLoader) -> Iterator[Batch]:
        """TorchTitan's, in the micro-batches that it wants. What it begins it begins when it is called."""
        batches = super().batch_generator(data_iterable)
        if not self.parallel_dims.pp_enabled:
            return batches
        size = self.config.parallelism.pipeline_parallel_microbatch_size
        return (part for batch in batches for part in micro_batches(*batch, size))

    def post_dataloading_process(
        self, input_dict: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """TorchTitan's, with the positions that its attention asks for."""
        if self.parts.spec.is_titans:
            positions = positions_of(input_dict["input"], **self.separators())
            input_dict = {"positions": positions} | input_dict
        seen = self.ntokens_seen
        inputs, labels, extra = super().post_dataloading_process(input_dict, labels)
        if not torch.is_grad_enabled():  # validation, whose tokens are not trained on
            self.ntokens_seen = seen
        return inputs, labels, extra | self.loop.model_inputs(inputs)

    @property
    def recorded(self) -> bool:
        """A micro-batch's passes are a CUDA graph."""
        return not self.config.training.disable_cuda_graphs

    def separators(self) -> dict[str, int]:
        """What parts the documents that attention stays within; empty where it crosses their ends."""
        if not masks_by_end_token(self.model_args):
            return {}
        asked = separators(self.job_config) if self.job_config.mosaic.separate_documents else {}
        return asked or {"eos_token_id": self.tokenizer.eos_id}

    def forward_backward_step(self, *, input_dict: Any, labels: Any, global_valid_tokens: torch.Tensor) -> torch.Tensor:
        """One micro-batch: forward, loss divided by the global batch's labels, backward.

        Args:
            input_dict: "input" LongTensor [B, S]; under pipelining a list of them, of which the schedule takes one
                by one.
            labels: LongTensor [B, S], -100 is ignored; under pipelining a list.
            global_valid_tokens: labels not ignored, in the whole global batch.

        Returns:
            This rank's share of the global batch's mean loss; -1 on pipeline stages without the loss.

        Raises:
            NoLabelsError: at the first micro-batch of a step without labels.
        """
        self.loop.begin_micro_batch(whole_batch(input_dict, labels), global_valid_tokens)
        loss: torch.Tensor = super().forward_backward_step(
            input_dict=input_dict, labels=labels, global_valid_tokens=global_valid_tokens
        )
        if self.recorded:
            loss = loss.detach().clone()  # the next replay writes over the graph's own
            if self.loop.keep_rows is not None:
                self.loop.keep_rows(self.rows_of_graph.clone())
        has_loss = not self.parallel_dims.pp_enabled or self.pp_has_last_stage
        if self.recorded or self.parallel_dims.pp_enabled:
            self.fire_of_schedule(loss.detach() if has_loss else torch.zeros((), device=self.device))
        if has_loss:
            self.loop.add_loss(loss)
        return loss

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Hand the loop what each row of a part of a micro-batch has of the loss, or leave it for after a replay."""
        if self.recorded:
            self.rows_of_graph = rows
        else:
            assert self.loop.keep_rows is not None
            self.loop.keep_rows(rows)

    def _forward_backward_body(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor,
        extra_kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """TorchTitan's, with Composer's events in between; a CUDA graph takes none."""
        if self.recorded:
            recorded: torch.Tensor = super()._forward_backward_body(inputs, labels, global_valid_tokens, extra_kwargs)
            return recorded
        fire = self.loop.fire
        with self.train_context():
            prediction = self.model_parts[0](inputs, **extra_kwargs)
            fire("after_forward", outputs=prediction)
            fire("before_loss")
            loss, _ = self.loss_fn(prediction, labels, global_valid_tokens)
            fire("after_loss", loss=loss)
            del prediction  # frees the logits before backward
            fire("before_backward")
            with spmd.no_typecheck():
                loss.backward()
            fire("after_backward")
        return loss


def positions_of(
    tokens: torch.Tensor, eos_token_id: int | None = None, bos_token_id: int | None = None
) -> torch.Tensor:
    """Each token's position in its document, [B, S]; attention stays among those that count up from one 0.

    Args:
        tokens: int64 [B, S].
        eos_token_id: what ends a document and belongs to it.
        bos_token_id: what begins one, where there is no `eos_token_id`. Without both a row is one document.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    separator = bos_token_id if eos_token_id is None else eos_token_id
    if separator is None:
        return places.contiguous()
    begins = torch.eq(tokens, separator)
    if eos_token_id is not None:  # the token after it begins the next one
        begins = torch.nn.functional.pad(begins[:, :-1], (1, 0))
    return places - torch.where(begins, places, 0).cummax(1).values


def whole_batch(input_dict: Any, labels: Any) -> dict[str, torch.Tensor]:
    """The micro-batch as callbacks see it, put together where the pipeline gets it in parts."""
    if isinstance(labels, torch.Tensor):
        return input_dict | {"labels": labels}
    return {"input": torch.cat([part["input"] for part in input_dict]), "labels": torch.cat(labels)}


def config_of(trainer: MosaicTrainer, job: MosaicJobConfig, parts: Parts) -> MosaicTrainer.Config:
    """TorchTitan's config of the job, with this package's parts in it; `trainer` is about to be built from it."""
    spec, data = parts.spec, parts.data
    args = trainer.model_args = spec.model_args[job.model.flavor]
    args.update_from_config(job)

    def dealt(*, dp_world_size: int, dp_rank: int, **_: Any) -> TrainLoader:
        data.deal(dp_world_size, dp_rank)
        return data.loader

    def optimizers(*, model_parts: list[torch.nn.Module]) -> Any:
        return spec.builders.optimizers(model_parts, job.optimizer, trainer.parallel_dims)

    def schedules(*, optimizers: Any, training_steps: int) -> Any:
        return parts.schedules(optimizers, job.lr_scheduler, training_steps)

    def validator(**given: Any) -> MosaicValidator:
        return MosaicValidator(job, data.eval_loaders, **given)

    tables = job_tables(job, parts)
    if parts.loop.keep_rows is not None:
        tables["loss"] = Made(partial(RowLosses, tables["loss"], keep=trainer.keep_rows))
    return MosaicTrainer.Config(
        job=job,
        model_spec=ModelSpec(
            name=job.model.name,
            flavor=job.model.flavor,
            model=spec.model_config(args, job.debug.seed),
            parallelize_fn=spec.parallelize_fn(job),
            pipelining_fn=spec.pipelining_fn,
            post_optimizer_build_fn=register_moe_load_balancing_hook if spec.is_titans else None,
            state_dict_adapter=lambda _, folder: spec.state_dict_adapter(args, folder),
        ),
        dataloader=Made(dealt),
        optimizer=Made(optimizers),
        lr_scheduler=Made(schedules, warmup_steps=job.lr_scheduler.warmup_steps),
        validator=Made(validator, enable=job.validation.enable),
        **tables,
    )
