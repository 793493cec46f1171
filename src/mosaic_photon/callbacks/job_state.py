"""A composer.State that follows a TorchTitan trainer: model, optimizers, data, clock and losses, counted globally."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from composer.core import Callback, Evaluator, State, Timestamp
from composer.devices import Device, DeviceCPU, DeviceGPU

from mosaic_photon.callbacks.composer_view import ModelView, language_metrics, set_loss
from mosaic_photon.job.eval_sets import evaluator
from mosaic_photon.titan.interface import RunningTrainer
from mosaic_photon.titan.layouts import compute_dtype, sum_of_losses, whole


class JobState:
    """Keeps `state` right at every event.

    `state.loss` is the mean over this rank's micro-batch at `after_loss`, if labels are spread evenly over the global
    batch, and the mean over the global batch at `batch_end`; both stay on the device. `state.batch` is the current
    micro-batch with `input_ids` and the shifted `labels`.

    Args:
        trainer: the job's, finished.
        callbacks: as State.callbacks.
        group: the CPU's process group, None with one process.
    """

    def __init__(self, trainer: RunningTrainer, callbacks: Sequence[Callback], group: dist.ProcessGroup | None) -> None:
        training, layout = trainer.job_config.training, trainer.parallel_dims
        self._trainer, self._group, self._data = trainer, group, trainer.parts.data
        self._seq_len = training.seq_len
        batch_mesh = layout.get_optional_mesh("batch")
        data_parallel = batch_mesh.size() if batch_mesh is not None else 1
        self._shares = trainer.gradient_accumulation_steps * data_parallel
        self._global_batch = self._shares * training.local_batch_size
        tokens = self._global_batch * training.seq_len
        flops = getattr(trainer.metrics_processor, "num_flops_per_token", 0) * tokens / dist.get_world_size()
        self.state = State(
            model=ModelView(trainer.model_parts, flops),
            rank_zero_seed=trainer.job_config.debug.seed or 0,
            run_name=trainer.job_config.job.dump_folder,
            device=_composer_device(trainer.device),
            max_duration=f"{training.steps}ba",
            device_train_microbatch_size=training.local_batch_size,
            train_dataloader=self._data.loader,
            dataloader=self._data.loader,
            dataloader_label="train",
            dataloader_len=self._data.loader.steps_per_epoch or -1,  # stages have no epoch, which Composer calls -1
            precision=_precision(trainer),
            optimizers=list(trainer.optimizers),
            callbacks=list(callbacks),
        )
        self.state.schedulers = list(trainer.lr_schedulers.schedulers)
        self.state.train_metrics = language_metrics()
        labels = [evaluator(label) for label in self._data.eval_loaders or ("",)]
        self.state.eval_metrics = {label: language_metrics() for label in labels}
        self.state.evaluators = [
            Evaluator(label=evaluator(label), dataloader=loader, metric_names=list(language_metrics()),
                      device_eval_microbatch_size=trainer.job_config.validation.local_batch_size)
            for label, loader in self._data.eval_loaders.items()
        ]  # fmt: skip
        self._saved_clock: dict[str, Any] = {}
        self._batch_began = self._eval_began = self._eval_batch_began = time.monotonic()
        self._loss: torch.Tensor | None = None

    @property
    def step(self) -> int:
        """TorchTitan's number of the current step, from 1."""
        return self._trainer.step

    def update(self, event: str, facts: dict[str, Any]) -> None:
        """Take in what the trainer says with an event, before the callbacks see it."""
        if "batch" in facts:
            batch = dict(facts["batch"])
            self.state.batch = {"input_ids": batch.pop("input", None)} | batch
        if "outputs" in facts:
            self.state.outputs = facts["outputs"]
        if event == "fit_start":
            self._start()
        elif event == "after_loss":
            self._add_loss(facts["loss"])
        elif event.startswith("eval_"):
            self._evaluate(event, facts)

    def release(self, event: str) -> None:
        """Free what the callbacks have seen: the logits before backward, the eval data afterwards."""
        if event in ("after_loss", "after_backward"):
            self.state.outputs = torch.Tensor()
        elif event == "eval_end":
            loader = self._data.loader
            self.state.set_dataloader(loader, "train", loader.steps_per_epoch or -1)
            self._batch_began += time.monotonic() - self._eval_began

    def start_events(self) -> list[str]:
        """Events that come before the first batch of an iteration and of an epoch."""
        stamp = self.state.timestamp
        events = ["iteration_start"] if stamp.batch == 0 else []
        return [*events, "epoch_start"] if stamp.batch_in_epoch == 0 else events

    def end_epoch(self) -> bool:
        """Move the clock to the next epoch if the data has begun it."""
        stamp = self.state.timestamp
        if self._data.loader.progress.epoch <= stamp.epoch.value:
            return False
        self.state.previous_timestamp, self.state.timestamp = stamp, stamp.to_next_epoch()
        return True

    def wants_stop(self) -> bool:
        """A callback has called `state.stop_training()` on this rank."""
        assert self.state.max_duration is not None
        return self.state.timestamp.get(self.state.max_duration.unit) >= self.state.max_duration

    def stop(self) -> None:
        """Let this rank's state say what all ranks have agreed on."""
        if not self.wants_stop():
            self.state.stop_training()

    def clock(self) -> dict[str, float]:
        """What the data loader's progress does not tell of the timestamp, and the batch at which it was so."""
        stamp = self.state.timestamp
        return {
            "batch": stamp.batch.value,
            "epoch": stamp.epoch.value,
            "batch_in_epoch": stamp.batch_in_epoch.value,
            "sample_in_epoch": stamp.sample_in_epoch.value,
            "token_in_epoch": stamp.token_in_epoch.value,
            "total_seconds": stamp.total_wct.total_seconds(),
            "epoch_seconds": stamp.epoch_wct.total_seconds(),
        }

    def set_clock(self, clock: dict[str, Any]) -> None:
        """Go on from `clock()` when training starts."""
        self._saved_clock = clock

    def _start(self) -> None:
        """Take the time from where the checkpoint left the trainer and its data."""
        progress, saved = self._data.loader.progress, self._saved_clock
        total = timedelta(seconds=saved.get("total_seconds", 0))
        if saved.get("batch") == self._trainer.step:  # after an epoch's last batch this epoch's end is still to come
            counts = {name: saved[name] for name in ("epoch", "batch_in_epoch", "sample_in_epoch", "token_in_epoch")}
            counts["epoch_wct"] = timedelta(seconds=saved["epoch_seconds"])
        else:  # the job went on without callbacks
            samples = progress.samples_in_epoch
            counts = {"epoch": progress.epoch, "batch_in_epoch": samples // self._global_batch}
            counts |= {"sample_in_epoch": samples, "token_in_epoch": samples * self._seq_len}
        self.state.timestamp = Timestamp(
            **counts,
            batch=self._trainer.step,
            sample=progress.samples,
            token=progress.tokens,
            token_in_iteration=progress.tokens,
            total_wct=total,
            iteration_wct=total,
        )
        self._batch_began = time.monotonic()

    def _add_loss(self, share: torch.Tensor) -> None:
        share = whole(share.detach())
        self.state.loss = share * self._shares
        self._loss = share if self._loss is None else self._loss + share

    def end_batch(self, failed: bool) -> bool:
        """Move the clock by a batch; returns whether a callback has failed on some rank, told whether on this one."""
        if self._loss is not None:
            self._set_train_loss(self._loss)
            self._loss = None
        progress, stamp, now = self._data.loader.progress, self.state.timestamp, time.monotonic()
        largest = torch.tensor([now - self._batch_began, failed], dtype=torch.float64)
        if self._group is not None:  # one clock for all ranks: what happens by time happens on all
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._group)
        seconds = float(largest[0])
        self.state.previous_timestamp = stamp
        self.state.timestamp = stamp.to_next_batch(
            samples=progress.samples - stamp.sample.value,
            tokens=progress.tokens - stamp.token.value,
            duration=timedelta(seconds=seconds),
        )
        self._batch_began = now
        return bool(largest[1])

    def _set_train_loss(self, share: torch.Tensor) -> None:
        """The global batch's mean loss, on the device; it is not waited for."""
        loss = self.state.loss = sum_of_losses(share.clone(), self._trainer.parallel_dims)
        assert self.state.train_metrics is not None
        self.state.train_metric_values = set_loss(self.state.train_metrics, loss)

    def _evaluate(self, event: str, facts: dict[str, Any]) -> None:
        now = time.monotonic()
        if event == "eval_start":
            self.state.set_dataloader(self._data.eval_loaders[facts["label"]], evaluator(facts["label"]))
            self.state.eval_timestamp = Timestamp()
            self._eval_began = now
        elif event == "eval_batch_start":
            self._eval_batch_began = now
        elif event == "eval_batch_end":
            inputs = self.state.batch["input_ids"]
            self.state.eval_timestamp = self.state.eval_timestamp.to_next_batch(
                samples=len(inputs) * self._shares // self._trainer.gradient_accumulation_steps,
                tokens=inputs.numel() * self._shares // self._trainer.gradient_accumulation_steps,
                duration=timedelta(seconds=now - self._eval_batch_began),
            )
        elif event == "eval_end":
            loss = torch.as_tensor(facts["loss"])
            metrics = self.state.eval_metrics[evaluator(facts["label"])]
            self.state.eval_metric_values |= set_loss(metrics, loss)


def _composer_device(device: torch.device) -> Device:
    if device.type != "cuda":
        return DeviceCPU()
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    composer_device = DeviceGPU(device.index)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before  # DeviceGPU turns TF32 on
    return composer_device


def _precision(trainer: RunningTrainer) -> str:
    """Composer's name of what the matrix multiplications run in; it decides what SpeedMonitor takes for the peak."""
    return "amp_bf16" if compute_dtype(trainer.job_config, trainer.parallel_dims) == "bfloat16" else "fp32"
