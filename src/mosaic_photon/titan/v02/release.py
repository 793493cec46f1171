"""What every release's folder has, for 0.2.2; see `titan.interface.Release`."""

from types import ModuleType
from typing import Any

from mosaic_photon.compat import cpu_flex_attention, cpu_histogram, cpu_metrics, cpu_pg_timeouts
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.v02.layouts import check_degrees
from mosaic_photon.titan.v02.spec import has_cross_entropy, known_models, model_spec, register
from mosaic_photon.titan.v02.trainer import build_trainer

__all__ = [
    "CPU_WORKAROUNDS", "DOCUMENTS_BY", "LACKING", "NOT_HERE", "add_llama3_mup", "build_trainer", "check_layout",
    "known_models", "model_spec", "register",
]  # fmt: skip

CPU_WORKAROUNDS: tuple[ModuleType, ...] = (cpu_flex_attention, cpu_histogram, cpu_metrics, cpu_pg_timeouts)
DOCUMENTS_BY = frozenset({"eos_token_id"})
LACKING = {"training.disable_cuda_graphs": "leave it out, as it records no CUDA graphs"}
NOT_HERE: dict[str, str] = {}


def check_layout(job: MosaicJobConfig, facts: Facts) -> None:
    """Raises ConfigError: see `check_degrees`; or a loss that has no rows."""
    check_degrees(job, facts.world_size, facts.on_cpu)
    if job.mosaic.loss_per_stream and not has_cross_entropy(facts.spec):
        raise ConfigError(
            f"[mosaic] loss_per_stream = true: {job.model.name} has a loss of its own, and only of TorchTitan's "
            "cross-entropy each row's part is known; leave it out."
        )


def add_llama3_mup(spec: Any, flavor: str) -> None:
    """See its module, which imports the model."""
    from mosaic_photon.titan.v02.llama3_mup import add_mup

    add_mup(spec, flavor)
