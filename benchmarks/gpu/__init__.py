"""The parts of `gpu_suite.py`, one file each, and the bundle that a bare machine needs."""
