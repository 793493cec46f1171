"""What the checks of a job know beside its configs: its processes, this machine, and its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.nn as nn


@dataclass
class Facts:
    """Handed in by who has the parts. A check may build what is asked for here, and then all of them share it."""

    spec: Any
    """The model's TrainSpec: how it is built, split into stages and written in Hugging Face's format."""
    model_args: Any
    """Those of the job's flavor, with `[model.overrides]`."""
    build_model: Callable[[], nn.Module]
    """Builds the model on the meta device. Raises ConfigError for sizes that the model's own code refuses."""
    on_cpu: bool
    """Whether this machine has no accelerator."""
    rank: int
    world_size: int
    """Processes of the job."""
    processes_here: int
    """Processes of the job on this machine."""
    run_length: Any = None
    """The run in each of a schedule's units; None until the data is open."""

    @cached_property
    def model(self) -> nn.Module:
        """The job's model on the meta device."""
        return self.build_model()
