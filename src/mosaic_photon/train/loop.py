"""What this package does around each of TorchTitan's steps: events, counts, a clean stop, agreement of the ranks."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.stateful import Stateful

from mosaic_photon.callbacks.host import CallbackHost
from mosaic_photon.callbacks.registry import build_callbacks
from mosaic_photon.checkpoints.find import Start
from mosaic_photon.compat.layout_independent_init import job_seed
from mosaic_photon.dataloader import DataSpecDataLoader
from mosaic_photon.dataloader.documents import document_counter
from mosaic_photon.dataloader.progress import fingerprint_difference
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.schedulers.builder import build_lr_schedulers
from mosaic_photon.titan.interface import Batch, NoLabelsError, Parts, PassedOverError, RunningTrainer
from mosaic_photon.titan.parts import IGNORE_INDEX
from mosaic_photon.titan.spec import BaseModelArgs, TrainSpec
from mosaic_photon.titan.tools import logger
from mosaic_photon.token_bytes import bits_per_byte
from mosaic_photon.train.data import JobData
from mosaic_photon.train.finite import FiniteSteps, Guard
from mosaic_photon.train.generators import Generators
from mosaic_photon.train.rewind import flags_without
from mosaic_photon.train.stop import GracefulStop
from mosaic_photon.train.streams import StreamMeter

if TYPE_CHECKING:
    from composer.core import Callback


def parts_of(
    job: MosaicJobConfig,
    spec: TrainSpec,
    data: JobData,
    stop: GracefulStop,
    make_loop: Callable[..., MosaicLoop] | None = None,
) -> Parts:
    """What a release of TorchTitan builds a trainer from, of a checked job and its open data.

    Args:
        make_loop: makes the loop in the place of `MosaicLoop`, of its arguments.

    Raises:
        ConfigError: a callback that there is not, that cannot work here, or that does not take its arguments.
    """
    callbacks = build_callbacks(job.callbacks)
    make = make_loop or MosaicLoop
    loop = make(job, spec.model_args[job.model.flavor], data.loader, callbacks, stop)
    return Parts(spec, data, partial(build_lr_schedulers, run_length=data.run), loop, data.start)


class MosaicLoop:
    """The loop of one job; see `titan.interface.Loop` for what a trainer calls, and when.

    Args:
        model_args: the model's.
        loader: the job's training data, which count what goes by.
        callbacks: by name, as `callbacks.registry.build_callbacks` makes them.
        stop: told of each step, and asked between two.
    """

    trainer: RunningTrainer

    def __init__(
        self,
        job: MosaicJobConfig,
        model_args: BaseModelArgs,
        loader: DataSpecDataLoader,
        callbacks: Mapping[str, Callback],
        stop: GracefulStop,
    ) -> None:
        self.count_documents = document_counter(model_args, job.mosaic.dataloader["dataset"])
        self.loader, self.stop = loader, stop
        self.streams = StreamMeter(loader) if job.mosaic.loss_per_stream else None
        self.keep_rows = None if self.streams is None else self.streams.keep_rows
        self.callbacks = CallbackHost(callbacks)
        self.fire, self.wants_inside = self.callbacks.fire, self.callbacks.wants_inside

    def attach(self, trainer: RunningTrainer) -> None:
        """Show the finished trainer to callbacks, and give all that ranks agree in one group on CPUs. Collective.

        Raises:
            ConfigError: ranks would read other data or begin elsewhere.
            CallbackError: a callback failed in `init`.
        """
        self.trainer = trainer
        skips = {"mosaic.skip_batches": str(self.loader.skips_of(self.loader.begin))}
        check_same_on_all_ranks(self.loader.fingerprint | skips, trainer.parts.start)
        self.finite = self._watch_steps()
        seed = job_seed(trainer.job_config.debug.seed)
        self.generators = Generators(seed, trainer.parallel_dims, trainer.device)
        self.group = cpu_group() if dist.get_world_size() > 1 else None
        self.stop.attach(self.group)
        self.callbacks.attach(trainer, self.group)

    def states(self) -> dict[str, Stateful]:
        """The callbacks' states and their clock, this rank's random generators, and what is counted by stream."""
        streams = {} if self.streams is None else {"streams": self.streams}
        return {"callbacks": self.callbacks, "generators": self.generators, **streams}

    def begin(self) -> None:
        """Signals ask for a stop from now on; a callback whose state cannot be saved fails now, not in a save."""
        self.stop.activate()
        self.fire("fit_start")
        if self.trainer.job_config.checkpoint.enable:
            self.callbacks.state_dict()
        self.generators.begin(self.trainer.step)
        if self.streams is not None:
            self.streams.begin()

    def counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Count this rank's labels while they are on the host: the step's count would have to leave the device."""
        table, reports = self.trainer.token_bytes, self.trainer.metrics_processor.should_log
        for input_dict, labels in batches:
            self.labels_of_step += int((labels != IGNORE_INDEX).sum())
            if table is not None and reports(self.trainer.step):
                self.bytes_of_step += table.of_batch(input_dict, labels)
            if self.streams is not None:
                self.streams.count(labels)
            yield input_dict, labels

    def wants_stop(self) -> bool:
        """Composer's `batch_checkpoint` and the end of an epoch; then whether a stop is asked for."""
        self.fire("batch_checkpoint")
        return self.stop.agreed() or self.callbacks.stop_requested

    def begin_step(self) -> None:
        """Composer's `before_dataloader`."""
        self.stop.begin_step()
        self.micro_batches_left = self.trainer.gradient_accumulation_steps
        self.labels_of_step = self.bytes_of_step = 0
        if self.streams is not None:
            self.streams.begin_step()
        self.progress_before = self.loader.progress
        self.finite.begin()
        self.fire("before_dataloader")

    def begin_micro_batch(self, batch: dict[str, torch.Tensor], labels_of_step: torch.Tensor | float) -> bool:
        """Composer's `before_forward`, and before it `batch_start` once a step."""
        if self.micro_batches_left == self.trainer.gradient_accumulation_steps:
            if self.trainer.parallel_dims.dp_enabled:
                on_host = isinstance(labels_of_step, float)
                self.labels_of_step = int(labels_of_step) if on_host else self._of_all_ranks(self.labels_of_step)
            self.loader.add_loss_tokens(self.labels_of_step)
            self.fire("batch_start", batch=batch)
            if self.labels_of_step == 0:
                raise NoLabelsError
        if self.streams is not None:
            self.streams.begin_micro_batch(len(batch["labels"]))
        self.micro_batches_left -= 1
        self.fire("before_forward", batch=batch)
        return self.micro_batches_left == 0

    def _of_all_ranks(self, count: int) -> int:
        """The sum over data-parallel ranks, by their hosts. Ranks that share a batch count it alike."""
        total, dims = torch.tensor(count), self.trainer.parallel_dims
        dist.all_reduce(total, group=self.group)
        return int(total) * dims.dp_replicate * dims.dp_shard // dist.get_world_size()

    def model_inputs(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """`sequence_id` [B, S] for a model that keeps documents apart."""
        return {} if self.count_documents is None else {"sequence_id": self.count_documents(inputs)}

    def add_loss(self, loss: torch.Tensor) -> None:
        """Have the step's loss watched."""
        self.finite.add(loss)

    def look_at_step(self, norm: torch.Tensor) -> None:
        """Have the step's loss and gradient norm watched; with "skip" they are judged here."""
        begin = self.progress_before
        self.finite.look(self.trainer.step, begin.batch + 1, partial(self.loader.describe, begin), norm)

    def pass_over(self, why: PassedOverError) -> None:
        """End a step without the optimizer's: the schedule and the data go on, the weights and the optimizer stay."""
        if isinstance(why, NoLabelsError) and dist.get_rank() == 0:
            logger.warning(
                f"Step {self.trainer.step} makes no optimizer step: all labels of its batch are ignored, as in padding "
                f"({self.loader.describe(self.progress_before)})."
            )
        self.fire("after_train_batch")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.trainer.lr_schedulers.step()

    def end_step(self) -> None:
        """Composer's `batch_end`, after the step before is known to be sound."""
        self.finite.check(before=self.trainer.step)
        self.fire("batch_end")
        self.stop.end_step()

    def metrics(self, loss: float) -> dict[str, float]:
        """Bits per byte of the step, whose mean loss is `loss`; and with `loss_per_stream` what the streams have."""
        dims, streams = self.trainer.parallel_dims, self.streams
        replicas = dist.get_world_size() / (dims.dp_replicate * dims.dp_shard)  # of a batch
        counts = [self.bytes_of_step, *([] if streams is None else streams.labels)]
        losses = [] if streams is None else streams.losses().tolist()
        sums = torch.tensor(
            [*(count / replicas for count in counts), *(one / dims.tp for one in losses)], dtype=torch.float64
        )
        if self.group is not None:
            dist.all_reduce(sums, group=self.group)
        text_bytes, *labels = sums[: len(counts)].round().tolist()
        bits = bits_per_byte(loss, self.labels_of_step, int(text_bytes))
        found = {} if bits is None else {"loss_metrics/bits_per_byte": bits}
        if streams is not None:
            found |= streams.report(sums[len(counts) :].numpy(), np.array(labels))
        return found

    def check_sound(self) -> None:
        """Wait for the numbers of this step too."""
        self.finite.check(before=self.trainer.step + 1)

    def _watch_steps(self) -> FiniteSteps:
        """What judges each step: `[mosaic] nonfinite`, and the callbacks that may hold one back."""
        job = self.trainer.job_config
        guards = [callback for callback in self.callbacks.callbacks.values() if isinstance(callback, Guard)]
        for guard in guards:
            guard.has_veto = True
        if job.comm.mode == "fake_backend":  # what no other process has sent is no number of the job's
            return FiniteSteps("ignore", 1, self._how_to_go_on)
        rule, replicas = job.mosaic.nonfinite, self.trainer.parallel_dims.tp
        return FiniteSteps(rule, replicas, self._how_to_go_on, guards, self._how_to_rewind)

    def _how_to_rewind(self, spikes: Sequence[Any]) -> list[str]:
        self.trainer.finish_saving()
        return flags_without(spikes, self.loader, self.trainer.job_config)

    def _how_to_go_on(self) -> str:
        enabled = self.trainer.job_config.checkpoint.enable
        self.trainer.finish_saving()  # what was sound is written before the job ends
        begins = "goes on from the newest checkpoint" if enabled else "begins anew, as nothing is saved"
        ways = ["a lower optimizer.lr or training.max_norm", "a longer warm-up"]
        if self.trainer.job_config.mosaic.nonfinite != "skip":
            ways.append('[mosaic] nonfinite = "skip", which makes no optimizer step of such a batch')
        return f"The same command {begins}; {', or '.join(ways)} may bring it past this one."

    def close(self) -> None:
        """Composer's `close` and `post_close`."""
        self.callbacks.close()


def cpu_group() -> dist.ProcessGroup:
    """All ranks, in one gloo group for every purpose: agreeing must not wait for a device. Collective.

    Where the ranks are pretended (`comm.mode = "fake_backend"`) so is the group.
    """
    world = dist.group.WORLD
    assert world is not None, "there is no process group yet"
    return world if dist.get_backend() in ("gloo", "fake") else _gloo_beside(world)


@functools.lru_cache(maxsize=1)
def _gloo_beside(world: dist.ProcessGroup) -> dist.ProcessGroup:
    return dist.new_group(backend="gloo")


def check_same_on_all_ranks(fingerprint: dict[str, Any], start: Start) -> None:
    """Raise ConfigError where ranks would read other data or begin elsewhere: a node's config or files differ."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (fingerprint, start))
    first_marks, first = gathered[0]
    for rank, (theirs, their_start) in enumerate(gathered):
        if their_start != first:
            raise ConfigError(
                f"ranks see different checkpoints. Rank 0: {first}. Rank {rank}: {their_start}. job.dump_folder and "
                "checkpoint.initial_load_path must be on a file system that all nodes share."
            )
        if difference := fingerprint_difference(first_marks, theirs):
            raise ConfigError(
                f"ranks would read different data (rank 0 -> rank {rank}):\n{difference}\n"
                "Give every node the same data config, and remove a cache whose index.json is out of date."
            )
