"""TorchTitan's job config: its tables, and the parser."""

from torchtitan.config import TORCH_DTYPE_MAP, ConfigManager, JobConfig, LRScheduler, Optimizer, job_config

__all__ = ["TORCH_DTYPE_MAP", "ConfigManager", "JobConfig", "LRScheduler", "Optimizer", "job_config"]
