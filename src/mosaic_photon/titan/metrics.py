"""TorchTitan's metrics, with token counts that are global and right after a change of layout."""

from typing import Any

from torchtitan.components.metrics import LoggerContainer, MetricsProcessor
from torchtitan.distributed import ParallelDims

from mosaic_photon.compat import cpu_device_type, cpu_metrics
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.interface import TrainLoader


class MosaicMetricsProcessor(MetricsProcessor):
    """Reports the tokens that the data plane counted in place of TorchTitan's per-rank count."""

    loader: TrainLoader | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.last: dict[str, Any] = {}
        """What was logged last, by its name, "step" and "loss" with it; on all ranks."""
        self._write = self.logger.log
        self.logger.log = self._keep_and_write

    def _keep_and_write(self, metrics: dict[str, Any], step: int) -> None:
        self.last |= {"step": step, **metrics}
        self._write(metrics, step)

    def attach(self, loader: TrainLoader) -> None:
        """From now on the tokens that `loader` has counted are reported."""
        self.loader = loader

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
        super().log(step, global_avg_loss, global_max_loss, grad_norm, extra)
        self.last["loss"] = global_avg_loss


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
    if cpu_device_type.ON_CPU:
        cpu_metrics.leave_out_device_metrics(processor)
    return processor
