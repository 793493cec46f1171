"""Checks of a machine for a job: each finding is one line that says what is so and, if it is not well, what to do."""

from mosaic_photon.doctor.finding import Finding

__all__ = ["Finding"]
