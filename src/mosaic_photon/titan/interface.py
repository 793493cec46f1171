"""What this package and a TorchTitan release ask of each other, whichever release it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn as nn
from torch.distributed.checkpoint.stateful import Stateful

from mosaic_photon.checkpoints.find import Start
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.token_bytes import TokenBytes

if TYPE_CHECKING:
    from mosaic_photon.titan.layouts import ParallelDims
    from mosaic_photon.titan.parts import LRSchedulersContainer, MetricsProcessor, OptimizersContainer

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]
"""({"input": int64 [B, S], ...}, labels int64 [B, S], -100 where ignored)."""


INSIDE_MICRO_BATCH = ("after_forward", "before_loss", "after_loss", "before_backward", "after_backward")
"""Composer's events between a micro-batch's passes. Where these cannot be interrupted, all come after the last one."""


class PassedOverError(Exception):
    """This step is to make no optimizer step. Raised on all ranks alike."""


class NoLabelsError(PassedOverError):
    """All labels of a global batch are ignored: its loss is 0 / 0."""


class Progress(Protocol):
    """Where the data is, counted over all ranks."""

    @property
    def epoch(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def samples_in_epoch(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def loss_tokens(self) -> int:
        """Labels that were not ignored."""
        ...


class TrainLoader(Protocol):
    """Endless micro-batches of one data-parallel rank, and where they are."""

    @property
    def progress(self) -> Progress: ...
    @property
    def steps_per_epoch(self) -> int | None:
        """None: the run has no epochs."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class EvalLoader(Protocol):
    """An eval set's micro-batches, the same in each pass and equally many on all ranks."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...


class OpenData(Protocol):
    """A job's data, opened before there are processes to share them out to."""

    @property
    def loader(self) -> TrainLoader: ...
    @property
    def eval_loaders(self) -> Mapping[str, EvalLoader]:
        """By label, "" for one without; empty in a job without validation."""
        ...

    def deal(self, dp_world_size: int, dp_rank: int) -> None:
        """From now on all loaders yield this data-parallel rank's part. Collective over the job."""
        ...


class Loop(Protocol):
    """What this package does around TorchTitan's steps; a trainer calls it, in the order of these methods.

    `mosaic_photon.train` tells the way of a step, `train/loop.py: MosaicLoop` what each method does.
    """

    @property
    def keep_rows(self) -> Callable[[torch.Tensor], None] | None:
        """Is to be given float32 [B], each row's sum of losses, of one part of a micro-batch after another, by ranks
        that have the loss. None: nobody asks for it."""
        ...

    def attach(self, trainer: RunningTrainer) -> None: ...

    def states(self) -> dict[str, Stateful]:
        """What checkpoints hold beside TorchTitan's own, by the key that it gets there."""
        ...

    def begin(self) -> None:
        """The checkpoint has been loaded; the first step comes."""
        ...

    def counted(self, batches: Iterator[Batch]) -> Iterator[Batch]: ...

    def wants_stop(self) -> bool:
        """Between two steps. Collective, equal on all ranks."""
        ...

    def begin_step(self) -> None: ...

    def begin_micro_batch(self, batch: dict[str, torch.Tensor], labels_of_step: torch.Tensor | float) -> bool:
        """Before a forward pass; returns whether it is the step's last one.

        Args:
            batch: the inputs by name, and "labels".
            labels_of_step: labels not ignored, in the global batch. A tensor is not read: it may be on a device.

        Raises:
            NoLabelsError: at the first micro-batch of a step without labels.
        """
        ...

    def model_inputs(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model asks for beside its inputs [B, S], on every pipeline stage."""
        ...

    def wants_inside(self) -> list[str]:
        """Names of the callbacks that do something at one of INSIDE_MICRO_BATCH."""
        ...

    def fire(self, event: str, **facts: Any) -> None:
        """One of Composer's events, and what has become known with it: batch, outputs, loss."""
        ...

    def add_loss(self, loss: torch.Tensor) -> None:
        """This rank's share of a micro-batch's part of the mean loss. Ranks without the loss add nothing."""
        ...

    def look_at_step(self, norm: torch.Tensor) -> None:
        """The gradients have been clipped; their norm was this. Collective; raises PassedOverError, NotFiniteError."""
        ...

    def pass_over(self, why: PassedOverError) -> None: ...

    def end_step(self) -> None: ...

    def metrics(self, loss: float) -> dict[str, float]:
        """What is reported of a step beside its mean loss. Collective."""
        ...

    def check_sound(self) -> None:
        """Before a save and at the end: raises NotFiniteError where a step so far has ruined the weights."""
        ...

    def close(self) -> None:
        """The job has ended, well or not. Safe to call twice."""
        ...


@dataclass(frozen=True)
class OwnModel:
    """A model that TorchTitan does not have, in the terms of its TrainSpecs."""

    model_cls: type[nn.Module]
    model_args: Mapping[str, Any]
    """By flavor."""
    parallelize_fn: Callable[..., nn.Module]
    pipelining_fn: Callable[..., Any]
    state_dict_adapter: type


@dataclass(frozen=True)
class Builders:
    """This package's parts, each made when TorchTitan asks for it. They are the same for all models."""

    dataloader: Callable[..., TrainLoader]
    """(dp_world_size, dp_rank, tokenizer, job_config)"""
    eval_dataloaders: Callable[..., Mapping[str, EvalLoader]]
    """The same; by label."""
    optimizers: Callable[..., Any]
    """(model_parts, the job's [optimizer], parallel_dims) -> TorchTitan's container"""
    schedules: Callable[..., Any]
    """(optimizers, the job's [lr_scheduler], training_steps) -> TorchTitan's container"""


@dataclass(frozen=True)
class Parts:
    """What one job is made of beside TorchTitan: all of it made, opened and checked before the trainer is built."""

    spec: Any
    """The model, as `model_spec` of the same release made it."""
    data: OpenData
    schedules: Callable[..., Any]
    """As in Builders, and knows the run's length in samples, tokens and epochs."""
    loop: Loop
    start: Start
    """What the job begins from."""


class RunningTrainer(Protocol):
    """A release's trainer, as the rest of this package sees it."""

    job_config: MosaicJobConfig
    parts: Parts
    model_args: Any
    step: int
    """The number of the current step, from 1; 0 before the first."""
    device: torch.device
    parallel_dims: ParallelDims
    model_parts: list[nn.Module]
    optimizers: OptimizersContainer
    lr_schedulers: LRSchedulersContainer
    metrics_processor: MetricsProcessor
    gradient_accumulation_steps: int
    token_bytes: TokenBytes | None
    """Of the job's tokenizer; None where its tokens are not known to be text."""

    def train(self) -> None:
        """Load `parts.start` and train to the job's last step, or until `Loop.wants_stop`."""
        ...

    @property
    def last_metrics(self) -> dict[str, Any]:
        """What has been logged last, by its name, and "step" and "loss"; empty before the first report."""
        ...

    def finish_saving(self) -> None: ...

    def save_seed(self) -> None: ...

    def close(self) -> None: ...


class Release(Protocol):
    """What a folder of a release offers, in its `release.py`."""

    CPU_WORKAROUNDS: tuple[ModuleType, ...]
    """What of `compat` it needs on a machine without an accelerator; each is applied."""
    LACKING: dict[str, str]
    """Fields of a job that it does not have, by their dotted names, and what to do instead. They keep their default."""
    NOT_HERE: dict[str, str]
    """Models that there are elsewhere, by name, and what to do."""
    DOCUMENTS_BY: frozenset[str]
    """The data config's keys for a token between documents by which its models keep attention within them."""

    def check_layout(self, job: MosaicJobConfig, facts: Facts) -> None:
        """Raises ConfigError: parallel degrees that it cannot have together, or not of this model on this machine."""
        ...

    def known_models(self) -> list[str]: ...

    def model_spec(self, name: str, builders: Builders, own: OwnModel | None = None) -> Any:
        """The release's description of its model `name`, or of `own`, fed and trained by this package's parts."""
        ...

    def add_llama3_mup(self, spec: Any, flavor: str) -> None:
        """Let Llama 3, which is `spec`'s model, follow `[mup]` in this flavor."""
        ...

    def register(self, name: str, spec: Any) -> None:
        """Let TorchTitan's own trainer find `spec` by `name`. Raises ValueError if it has one of this name."""
        ...

    def build_trainer(self, job: MosaicJobConfig, parts: Parts) -> RunningTrainer:
        """A trainer whose loop is `parts.loop`'s. Collective; what it had made is released if it fails."""
        ...
