"""TorchTitan's dtypes by name, and 0.2's own job config; a job's is `job.tables`, whose tables have the same fields."""

from torchtitan.config import TORCH_DTYPE_MAP

from mosaic_photon.titan.releases import installed

if installed().folder == "v02":
    from torchtitan.config import JobConfig, LRScheduler, Optimizer, job_config

__all__ = ["TORCH_DTYPE_MAP", "JobConfig", "LRScheduler", "Optimizer", "job_config"]
