"""TorchTitan trains; Mosaic feeds it. Importing this package imports nothing else and has no side effects."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic_photon.train_spec import register, register_llama3_mosaic, register_mpt_mup_mosaic

__version__ = "0.1.0"
__all__ = ["__version__", "register", "register_llama3_mosaic", "register_mpt_mup_mosaic"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from mosaic_photon import train_spec

        return getattr(train_spec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
