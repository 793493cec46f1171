"""TorchTitan's metrics, with token counts that are global and right after a change of layout."""

from typing import Any

from mosaic_photon.compat import cpu_device_type, cpu_metrics
from mosaic_photon.errors import ConfigError
from mosaic_photon.titan.config import JobConfig
from mosaic_photon.titan.layouts import ParallelDims
from mosaic_photon.titan.parts import LoggerContainer, MetricsProcessor


class MosaicMetricsProcessor(MetricsProcessor):
    """Reports the tokens that the data plane counted in place of TorchTitan's per-rank count."""

    dataloader: Any = None
    """The job's DataSpecDataLoader, set by the trainer."""

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
        if self.dataloader is not None:
            progress = self.dataloader.progress
            extra |= {"n_tokens_seen": progress.tokens, "n_loss_tokens_seen": progress.loss_tokens}
        super().log(step, global_avg_loss, global_max_loss, grad_norm, extra)


def build_metrics_processor(
    job_config: JobConfig, parallel_dims: ParallelDims, model_args: Any = None, tag: str | None = None
) -> MosaicMetricsProcessor:
    """TorchTitan's `build_metrics_processor_fn`.

    Raises:
        ConfigError: W&B was asked for and could not be started, which TorchTitan only logs.
    """
    processor = MosaicMetricsProcessor(job_config, parallel_dims, tag)
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
