"""Composer callbacks, and the host that runs Composer callbacks inside TorchTitan. Composer is imported on demand."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic_photon.callbacks.optimizer_monitor import OptimizerMonitor
    from mosaic_photon.callbacks.quasi_hyperbolic_monitor import QuasiHyperbolicParameterMonitor

__all__ = ["OptimizerMonitor", "QuasiHyperbolicParameterMonitor"]


def __getattr__(name: str) -> Any:
    if name == "OptimizerMonitor":
        from mosaic_photon.callbacks.optimizer_monitor import OptimizerMonitor

        return OptimizerMonitor
    if name == "QuasiHyperbolicParameterMonitor":
        from mosaic_photon.callbacks.quasi_hyperbolic_monitor import QuasiHyperbolicParameterMonitor

        return QuasiHyperbolicParameterMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
