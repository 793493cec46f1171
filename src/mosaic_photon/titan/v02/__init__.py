"""TorchTitan 0.2.2: TrainSpecs in a registry, and a Trainer that reads all else from the job config."""

from mosaic_photon.titan.v02.spec import known_models, model_spec, register
from mosaic_photon.titan.v02.trainer import build_trainer

__all__ = ["build_trainer", "known_models", "model_spec", "register"]
