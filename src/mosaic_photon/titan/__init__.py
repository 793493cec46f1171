"""The door to TorchTitan: what this package uses of it, by theme. Nothing outside `titan/` and `compat/` names it.

`compat.cpu_device_type` must be imported before any part of TorchTitan, which this does for all of the door's modules.
"""

from mosaic_photon.compat import cpu_device_type

__all__ = ["cpu_device_type"]
