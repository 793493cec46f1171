"""TorchTitan's metrics, with token counts that are global and right after a change of layout."""

import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torchtitan.components.metrics import BaseLogger, LoggerContainer, MetricsProcessor
from torchtitan.distributed import ParallelDims
from torchtitan.tools.logging import logger

from mosaic_photon.compat import cpu_device_type, cpu_metrics
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.report import console, recorder
from mosaic_photon.titan.interface import TrainLoader


class RecordLogger(BaseLogger):
    """Writes to the job's record, and a line of it to the terminal, what TensorBoard and W&B get, by the same names."""

    def log(self, metrics: dict[str, Any], step: int) -> None:
        if record := recorder.current():
            record.report(metrics, step)
        if lines := console.current():
            lines.report(metrics, step)


class MosaicMetricsProcessor(MetricsProcessor):
    """Reports the tokens that the data plane counted in place of TorchTitan's per-rank count."""

    logger: BaseLogger
    loader: TrainLoader | None = None
    ntokens_since_last_log: int
    time_last_log: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.last: dict[str, Any] = {}
        """What was logged last, by its name, "step" and "loss" with it; on all ranks."""

    def keep(self, record: bool) -> None:
        """From now on what is logged is kept in `last`, and where `record` in the job's record too."""
        if record:
            self.logger = self.logger if isinstance(self.logger, LoggerContainer) else LoggerContainer()
            self.logger.add_logger(RecordLogger())
        self._write = self.logger.log
        self.logger.log = self._keep_and_write

    def _keep_and_write(self, metrics: dict[str, Any], step: int) -> None:
        self.last |= {"step": step, **metrics}
        self._write(metrics, step)

    def attach(self, loader: TrainLoader, more: Callable[[float], dict[str, float]]) -> None:
        """From now on the tokens that `loader` has counted are reported, and what `more` has beside a mean loss."""
        self.loader, self.more = loader, more

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        """TorchTitan's report; n_tokens_seen counts the inputs of all ranks, n_loss_tokens_seen labels not ignored."""
        extra = dict(extra_metrics or {})
        if rates := [name for name in extra if name.startswith("lr/")]:  # 0.3's, one a parameter group
            extra = {"lr": extra[rates[0]]} | {name: value for name, value in extra.items() if name not in rates}
        if self.loader is not None:
            progress = self.loader.progress
            extra |= {"n_tokens_seen": progress.tokens, "n_loss_tokens_seen": progress.loss_tokens}
            extra |= self.more(global_avg_loss)
        if record := recorder.current():
            record.steps()  # before TorchTitan forgets how long they waited for data
        super().log(step, global_avg_loss, global_max_loss, grad_norm, extra)
        self.last["loss"] = global_avg_loss

    def log_set(self, label: str, numbers: dict[str, float], step: int) -> None:
        """What an eval set came to, as `numbers_of` has it: TorchTitan's report, or another under the set's label.

        As after TorchTitan's, the next report counts tokens, time and memory from here.
        """
        if not label:
            extra = {f"validation_metrics/{name}": value for name, value in numbers.items() if name != "loss"}
            self.log_validation(numbers["loss"], step, extra)
            return
        seconds = time.perf_counter() - self.time_last_log
        tps = self.ntokens_since_last_log / (seconds * self.parallel_dims.non_data_parallel_size)
        named = {**numbers, "throughput(tps)": tps}
        self.logger.log({f"validation_metrics/{label}/{name}": value for name, value in named.items()}, step)
        bits = f"  bits per byte: {numbers['bits_per_byte']:6.4f}" if "bits_per_byte" in numbers else ""
        if console.current() is None:  # a terminal's lines have one for it
            logger.info(
                f"{self.color.yellow}validate step: {step:2}  {self.color.cyan}{label}  "
                f"{self.color.green}loss: {numbers['loss']:7.4f}{bits}  "
                f"{self.color.blue}tps: {round(tps):,}{self.color.reset}"
            )
        self.ntokens_since_last_log, self.time_last_log = 0, time.perf_counter()
        self.device_memory_monitor.reset_peak_stats()


def build_metrics_processor(
    job_config: MosaicJobConfig, parallel_dims: ParallelDims, model_args: Any = None, tag: str | None = None
) -> MosaicMetricsProcessor:
    """TorchTitan's `build_metrics_processor_fn`. Raises ConfigError as `checked`."""
    return checked(MosaicMetricsProcessor(job_config, parallel_dims, tag), job_config)


def checked(processor: MosaicMetricsProcessor, job_config: MosaicJobConfig) -> MosaicMetricsProcessor:
    """The processor as a job needs it.

    Raises:
        ConfigError: W&B was asked for and could not be started, which TorchTitan only logs.
    """
    sink, metrics = processor.logger, job_config.metrics
    wanted = metrics.enable_wandb + metrics.enable_tensorboard
    if isinstance(sink, LoggerContainer) and sink.number_of_loggers < wanted:
        raise ConfigError(
            "metrics.enable_wandb = true, but W&B could not be started; the line above says why. Log in with "
            "`wandb login`, set WANDB_MODE=offline, or leave it out."
        )
    processor.keep(record=knows_metrics(processor.parallel_dims, job_config))
    if cpu_device_type.ON_CPU:
        cpu_metrics.leave_out_device_metrics(processor)
    return processor


def knows_metrics(dims: ParallelDims, job_config: MosaicJobConfig) -> bool:
    """Whether this is the one rank whose metrics TorchTitan writes: with pipeline parallelism one that has the loss."""
    last_stage = dims.pp_enabled and job_config.parallelism.pipeline_parallel_schedule != "ZBVZeroBubble"
    return dist.get_rank() == (dims.world_size // dims.pp * (dims.pp - 1) if last_stage else 0)
