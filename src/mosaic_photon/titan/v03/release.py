"""What every release's folder has, for 0.3; see `titan.interface.Release`."""

from types import ModuleType
from typing import Any

from mosaic_photon.compat import cpu_flex_attention, cpu_metrics, cpu_pg_timeouts
from mosaic_photon.titan.v03.config import LACKING
from mosaic_photon.titan.v03.layouts import check_layout
from mosaic_photon.titan.v03.spec import NOT_HERE, known_models, model_spec, register
from mosaic_photon.titan.v03.trainer import build_trainer

__all__ = [
    "CPU_WORKAROUNDS", "DOCUMENTS_BY", "LACKING", "NOT_HERE", "add_llama3_mup", "build_trainer", "check_layout",
    "known_models", "model_spec", "register",
]  # fmt: skip

CPU_WORKAROUNDS: tuple[ModuleType, ...] = (cpu_flex_attention, cpu_metrics, cpu_pg_timeouts)
DOCUMENTS_BY = frozenset({"eos_token_id", "bos_token_id"})


def add_llama3_mup(spec: Any, flavor: str) -> None:
    """See its module, which imports the model."""
    from mosaic_photon.titan.v03.llama3_mup import add_mup

    add_mup(spec, flavor)
