"""The one door to TorchTitan: nothing outside `titan/` and `compat/` names it.

`release()` hands out what is different from one TorchTitan to the next, from a folder of its own (`v02/`). All have
the same functions, those of `interface.Release`: describe a model, and build a trainer from a checked job and this
package's parts. What the two ask of each other stands in `interface.py`. The other files lend TorchTitan's names by
theme: `config`, `layouts`, `parts`, `spec`, `llama3`, `tools`.

`compat.cpu_device_type` must be imported before any part of TorchTitan, which this does for all of the door's modules.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from mosaic_photon.compat import cpu_device_type
from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    from mosaic_photon.titan.interface import Release

__all__ = ["cpu_device_type", "release"]


def release() -> "Release":
    """What this package does with the TorchTitan that is installed.

    Raises:
        ConfigError: it is of a release that this package does not know.
    """
    installed = version("torchtitan")
    if not installed.startswith("0.2.2"):
        raise ConfigError(f"torchtitan {installed} is installed, and this package runs on 0.2.2: install that one.")
    from mosaic_photon.titan import v02

    return v02
