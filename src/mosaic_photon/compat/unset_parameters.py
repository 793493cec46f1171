"""TorchTitan's gpt_oss never sets its routers' gate bias: after `to_empty` it holds whatever the memory held, NaN too.

Parameters are zeroed before a model's own initialisation. Upstream: pytorch/torchtitan#2450. Delete with the first
pinned release that has it.
"""

from typing import Any

import torch


def zero_before_init(model: Any) -> None:
    """Let `model.init_weights` begin from zeros."""
    init_weights = model.init_weights

    def init_from_zero(*args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        init_weights(*args, **kwargs)

    model.init_weights = init_from_zero
