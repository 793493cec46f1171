"""The one door to TorchTitan: nothing outside `titan/` and `compat/` names it.

`release()` hands out what is different from one TorchTitan to the next, from a folder of its own (`v02/`, `v03/`). All
have the same functions, those of `interface.Release`: describe a model, and build a trainer from a checked job and this
package's parts. What the two ask of each other stands in `interface.py`. The other files lend TorchTitan's names by
theme: `config`, `layouts`, `parts`, `spec`, `tools`.

`compat.cpu_device_type` must be imported before any part of TorchTitan, which this does for all of the door's modules.
"""

from typing import TYPE_CHECKING

from mosaic_photon.compat import cpu_device_type
from mosaic_photon.titan.releases import installed

if TYPE_CHECKING:
    from mosaic_photon.titan.interface import Release

__all__ = ["apply_workarounds", "cpu_device_type", "release"]


def release() -> "Release":
    """What this package does with the TorchTitan that is installed.

    Raises:
        ConfigError: as `releases.installed`.
    """
    if installed().folder == "v03":
        from mosaic_photon.titan.v03 import release as v03

        return v03
    from mosaic_photon.titan.v02 import release as v02

    return v02


def apply_workarounds() -> None:
    """On a machine without an accelerator: what of `compat` TorchTitan needs there, before a model is built."""
    if cpu_device_type.ON_CPU:
        for workaround in release().CPU_WORKAROUNDS:
            workaround.apply()
