"""What every release's folder has, for 0.2.2; see `titan.interface.Release`."""

from types import ModuleType

from mosaic_photon.compat import cpu_flex_attention, cpu_histogram, cpu_metrics, cpu_pg_timeouts
from mosaic_photon.titan.v02.layouts import check_layout
from mosaic_photon.titan.v02.spec import known_models, model_spec, register
from mosaic_photon.titan.v02.trainer import build_trainer

__all__ = ["CPU_WORKAROUNDS", "LACKING", "build_trainer", "check_layout", "known_models", "model_spec", "register"]

CPU_WORKAROUNDS: tuple[ModuleType, ...] = (cpu_flex_attention, cpu_histogram, cpu_metrics, cpu_pg_timeouts)
LACKING = {"training.disable_cuda_graphs": "leave it out, as it records no CUDA graphs"}
