"""TorchTitan's metrics assume an accelerator: `torch.cpu` has no name, capacity, memory statistics or peak FLOPS.

On the CPU the memory columns report this process's resident set, and MFU, which would be that of an A100, is left out.
TorchTitan supports accelerators only (no upstream issue). Delete when its `DeviceMemoryMonitor` and `get_peak_flops`
know the CPU.
"""

import logging
import math
import platform
import re
from typing import Any

import psutil
from torchtitan.components import metrics
from torchtitan.tools import utils
from torchtitan.tools.logging import logger

NEEDED = "torchtitan"

GIB = 1024**3
MFU_COLUMN = re.compile(r"\s*(\x1b\[\d+m)?mfu: [^%]*%")
DEVICE_ONLY = ("mfu(%)", "memory/num_alloc_retries", "memory/num_ooms")


class ProcessMemoryMonitor:
    """TorchTitan's DeviceMemoryMonitor for a CPU: the resident set of this process, in GiB and % of the machine's."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.device_name = platform.processor() or platform.machine()
        self.device_capacity = psutil.virtual_memory().total
        self.device_capacity_gib = self.device_capacity / GIB

    def get_peak_stats(self) -> metrics.DeviceMemStats:
        resident = self.process.memory_info().rss
        gib, percent = resident / GIB, 100 * resident / self.device_capacity
        return metrics.DeviceMemStats(gib, percent, gib, percent, 0, 0)

    def reset_peak_stats(self) -> None:
        """The resident set is read, not accumulated."""


def _drop_mfu_column(record: logging.LogRecord) -> bool:
    if isinstance(record.msg, str):
        record.msg = MFU_COLUMN.sub("", record.msg)
    return not str(record.msg).startswith(("Peak FLOPS used", "Error running lspci"))


def leave_out_device_metrics(processor: metrics.MetricsProcessor) -> None:
    """Drop what has no meaning on a CPU from what `processor` writes to TensorBoard and W&B."""
    log = processor.logger.log

    def log_rest(values: dict[str, Any], step: int) -> None:
        log({name: value for name, value in values.items() if name not in DEVICE_ONLY}, step)

    processor.logger.log = log_rest


def apply() -> None:
    """Let TorchTitan measure this process instead of a device."""
    metrics.build_device_memory_monitor = ProcessMemoryMonitor
    utils.get_peak_flops = lambda device_name: math.inf
    if _drop_mfu_column not in logger.filters:
        logger.addFilter(_drop_mfu_column)
