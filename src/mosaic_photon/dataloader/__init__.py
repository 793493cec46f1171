"""llm-foundry's loader config in, TorchTitan's batches out. Names are imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic_photon.dataloader.build import build_mosaic_dataloader, build_mosaic_eval_dataloader
    from mosaic_photon.dataloader.loader import DataSpecDataLoader

_HOME = {
    "DataSpecDataLoader": "loader",
    "build_mosaic_dataloader": "build",
    "build_mosaic_eval_dataloader": "build",
}

__all__ = ["DataSpecDataLoader", "build_mosaic_dataloader", "build_mosaic_eval_dataloader"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
