"""Workarounds for upstream defects, one file each: what is wrong, the upstream issue, when the file is to be deleted.

`NEEDED` names the package that has the defect, with its versions where not all known ones have it. A test shows on each
release that the defect is still there, and that nothing is applied for what has been mended.

`cpu_device_type` must be imported before any part of TorchTitan, which `titan/__init__.py` does. Importing this package
imports nothing: data is read where there is no TorchTitan.
`counter_random` is no workaround, but the arithmetic of one.
"""
