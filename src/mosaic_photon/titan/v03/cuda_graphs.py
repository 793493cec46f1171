"""Whether TorchTitan 0.3 records a micro-batch's passes as a CUDA graph, which then runs without Python in between."""

from collections.abc import Sequence
from typing import Any

from mosaic_photon.compat.cpu_device_type import ON_CPU
from mosaic_photon.job.layout_checks import has_experts
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.tools import logger


def records(job: MosaicJobConfig, model_args: Any, is_titans: bool, callbacks: Sequence[str]) -> bool:
    """Whether to, which is TorchTitan's default; where the job cannot, rank 0 says why."""
    if ON_CPU or job.training.disable_cuda_graphs:
        return False
    why = why_not(job, model_args, is_titans, callbacks)
    if why:
        logger.info(f"No CUDA graphs: {why}.")
    return why is None


def why_not(job: MosaicJobConfig, model_args: Any, is_titans: bool, callbacks: Sequence[str]) -> str | None:
    """The first reason, in words; None for no reason.

    Args:
        is_titans: the model is TorchTitan's.
        callbacks: names of those that want events between a micro-batch's passes.
    """
    reasons = {
        f"{', '.join(callbacks)} would miss events between a step's passes": bool(callbacks),
        "TorchTitan has none under pipeline parallelism": job.parallelism.pipeline_parallel_degree > 1,
        "the number of tokens for each expert is read by the host": has_experts(model_args),
        "the lengths of documents that varlen attention takes change": getattr(model_args, "attn_type", "") == "varlen",
        "weights come from the host": job.training.enable_cpu_offload,
        "the model is not TorchTitan's": not is_titans,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
