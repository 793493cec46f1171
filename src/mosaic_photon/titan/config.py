"""TorchTitan's own job config; a job's is `job.tables`, whose tables have the same fields."""

from torchtitan.config import TORCH_DTYPE_MAP, JobConfig, LRScheduler, Optimizer, job_config

__all__ = ["TORCH_DTYPE_MAP", "JobConfig", "LRScheduler", "Optimizer", "job_config"]
