"""Workarounds for upstream defects, one file each: what is wrong, the upstream issue, when the file is to be deleted.

`cpu_device_type` must be imported before any part of TorchTitan; importing anything of this package does that.
"""

from mosaic_photon.compat import cpu_device_type

__all__ = ["cpu_device_type"]
