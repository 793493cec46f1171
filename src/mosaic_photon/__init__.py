"""TorchTitan trains; Mosaic feeds it. Importing this package imports nothing heavy and has no side effects."""

from typing import TYPE_CHECKING

from mosaic_photon.names import lazy_names

if TYPE_CHECKING:
    from mosaic_photon.dataloader.open import open_data
    from mosaic_photon.errors import ConfigError
    from mosaic_photon.from_python import train_job
    from mosaic_photon.train_spec import register, register_llama3_mosaic, register_mpt_mup_mosaic

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "__version__",
    "open_data",
    "register",
    "register_llama3_mosaic",
    "register_mpt_mup_mosaic",
    "train_job",
]
_HOMES = {"ConfigError": "errors", "open_data": "dataloader.open", "train_job": "from_python"}
_REGISTER = ("register", "register_llama3_mosaic", "register_mpt_mup_mosaic")
__getattr__ = lazy_names(__name__, _HOMES | dict.fromkeys(_REGISTER, "train_spec"))
