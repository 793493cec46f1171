"""Checkpoints as files: which one a job begins from, what is in it, and whether that fits the job."""
