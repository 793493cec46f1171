"""llm-foundry's loader config in, TorchTitan's batches out. Names are imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic_photon.dataloader.build import build_mosaic_dataloader, build_mosaic_eval_dataloader
    from mosaic_photon.dataloader.config import DataConfig, load_data_config
    from mosaic_photon.dataloader.loader import DataSpecDataLoader

_HOME = {
    "DataConfig": "config",
    "DataSpecDataLoader": "loader",
    "build_mosaic_dataloader": "build",
    "build_mosaic_eval_dataloader": "build",
    "load_data_config": "config",
}

__all__ = [
    "DataConfig",
    "DataSpecDataLoader",
    "build_mosaic_dataloader",
    "build_mosaic_eval_dataloader",
    "load_data_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
