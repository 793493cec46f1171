"""TorchTitan's expert load balancing can be had only together with TorchTitan's own optimizers.

`build_optimizers_with_moe_load_balancing` builds Adam or AdamW and then registers its hook; here the first half is
another builder. No upstream issue. Delete when the hook can be registered by itself.
"""

from collections.abc import Callable
from typing import Any

import torch.nn as nn
from torchtitan.components import optimizer as titan
from torchtitan.distributed import ParallelDims

NEEDED = "torchtitan<0.3"


def with_load_balancing(build_optimizers: Callable[..., titan.OptimizersContainer]) -> Callable[..., Any]:
    """A TorchTitan optimizer builder: `build_optimizers`, then TorchTitan's load-balancing hook on its container."""

    def build(model_parts: list[nn.Module], optimizer_config: Any, parallel_dims: ParallelDims) -> Any:
        def build_ours(**kwargs: Any) -> titan.OptimizersContainer:
            kwargs.pop("ft_manager")
            return build_optimizers(**kwargs)

        original = titan.build_optimizers
        titan.build_optimizers = build_ours
        try:
            return titan.build_optimizers_with_moe_load_balancing(model_parts, optimizer_config, parallel_dims)
        finally:
            titan.build_optimizers = original

    return build
