"""Workarounds for upstream defects, one file each: what is wrong, the upstream issue, when the file is to be deleted.

`cpu_device_type` must be imported before any part of TorchTitan, which `titan/__init__.py` does. Importing this package
imports nothing: data is read where there is no TorchTitan.
"""
