"""Optimizers. Importing this package needs torch alone; TorchTitan is needed by `builder` and `container`."""

from mosaic_photon.optimizers.qhadopt import ADOPT, QHADOPT

__all__ = ["ADOPT", "QHADOPT"]
