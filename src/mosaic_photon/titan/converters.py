"""TorchTitan's converters of a model: which there are, and what they need."""

import importlib.util

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import MosaicJobConfig


def check_converters(job: MosaicJobConfig, facts: Facts) -> None:
    """Each converter must be registered, TorchTitan's have their package, and all of them be of one format."""
    named = job.model.converters
    if not named:
        return
    import torchtitan.components.quantization  # noqa: F401  (registers its converters)
    from torchtitan.protocols.model_converter import _registry_model_converter_cls

    for name in named:
        if name not in _registry_model_converter_cls:
            known = nearest(name, _registry_model_converter_cls)
            raise ConfigError(f"model.converters: there is no converter {name!r}.{known}")
    quantizing = [name for name in named if name.startswith("quantize.")]
    if quantizing and importlib.util.find_spec("torchao") is None:
        raise ConfigError(f"model.converters: {quantizing[0]!r} needs the package torchao (pip install torchao).")
    if len({name.rpartition(".")[2] for name in quantizing}) > 1:
        raise ConfigError(f"model.converters: {' and '.join(quantizing)} are of different formats; take those of one.")
