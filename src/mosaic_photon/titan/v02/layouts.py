"""What TorchTitan 0.2.2 cannot lay out."""

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.layout_checks import data_parallel_degree
from mosaic_photon.job.tables import MosaicJobConfig


def check_degrees(job: MosaicJobConfig, world_size: int, on_cpu: bool) -> None:
    """Ring attention has no kernel for a CPU, and DDP stands alone.

    Raises:
        ConfigError: the degrees do not fit, or cannot be had together.
    """
    layout = job.parallelism
    replicate, context = layout.data_parallel_replicate_degree, layout.context_parallel_degree
    if context > 1 and on_cpu:
        raise ConfigError(
            f"parallelism.context_parallel_degree = {context} needs an accelerator; on this machine it must be 1."
        )
    shard = data_parallel_degree(job, world_size) // replicate
    is_ddp = replicate > 1 and shard == 1 and context == 1  # with context parallelism weights are sharded: HSDP
    if is_ddp and replicate != world_size:
        raise ConfigError(
            f"parallelism: data_parallel_replicate_degree = {replicate} without data_parallel_shard_degree is DDP, "
            "which TorchTitan 0.2.2 cannot combine with tensor or pipeline parallelism; shard the data too."
        )
