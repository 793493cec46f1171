"""TorchTitan takes "cuda" for its device on a machine that has no accelerator, and fails.

`torchtitan.tools.utils` reads the device type once, on import, and falls back to "cuda". The one function it asks is
answered with "cpu" while that module is imported, and restored.
TorchTitan supports accelerators only (no upstream issue). Delete when it falls back to "cpu".
"""

import importlib.util

import torch

NEEDED = "torchtitan"

ON_CPU = torch._utils._get_available_device_type() is None
"""No accelerator on this machine."""


def import_torchtitan_utils() -> None:
    """Import `torchtitan.tools.utils` with "cpu" as its device type; other torch code keeps its own answer."""
    original = torch._utils._get_available_device_type
    torch._utils._get_available_device_type = lambda: "cpu"
    try:
        import torchtitan.tools.utils  # noqa: F401
    finally:
        torch._utils._get_available_device_type = original


if ON_CPU and importlib.util.find_spec("torchtitan") is not None:
    import_torchtitan_utils()
