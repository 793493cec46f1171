"""TorchTitan's logger and device."""

from torchtitan.tools import utils
from torchtitan.tools.logging import init_logger, logger
from torchtitan.tools.utils import device_type

__all__ = ["device_type", "init_logger", "logger", "utils"]
