"""0.3's checkpointing and compilation of a model as 0.2.2 is asked for them, for a model that is not TorchTitan's."""

from __future__ import annotations

from typing import Any

import torch.nn as nn
from torch.distributed.device_mesh import DeviceMesh
from torchtitan.distributed.compile import _maybe_enable_async_tp

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import ActivationCheckpoint, Compile, MosaicJobConfig
from mosaic_photon.titan.v03.config import activation_checkpoint, compilation


def apply_ac(model: nn.Module, table: ActivationCheckpoint, base_folder: str, **_: Any) -> None:
    """Wrap each of the model's `layers` as the job's table says."""
    policy = activation_checkpoint(table)
    policy.build(dump_folder=base_folder).apply(model)


def apply_compile(model: Any, table: Compile) -> None:
    """Compile each of the model's `layers`."""
    for layer in model.layers.children():
        layer.compile(backend=table.backend, fullgraph=True)


def maybe_enable_async_tp(job: MosaicJobConfig, mesh: DeviceMesh) -> None:
    """As the job says."""
    _maybe_enable_async_tp(compilation(job), mesh)


def apply_cp_to_attention_module(*_: Any) -> None:
    """Raises ConfigError: 0.3 splits its own attention only."""
    raise ConfigError(
        "parallelism.context_parallel_degree: TorchTitan 0.3 cannot split this model's attention; set it to 1, or "
        "train on 0.2.2."
    )
