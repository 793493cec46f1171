"""TorchTitan's MoE counts tokens per expert with `torch.histc` of integers, which torch has for accelerators only.

On a CPU integers are counted as floats, exactly, below 2^24. Delete when `torch.histc` takes integers on a CPU.
"""

from typing import Any

import torch

NEEDED = "torchtitan<0.3"

_histc = torch.histc


def histc(input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`torch.histc`, also for integer tensors on a CPU; the counts have the input's dtype."""
    if input.is_floating_point() or input.device.type != "cpu":
        return _histc(input, *args, **kwargs)
    return _histc(input.float(), *args, **kwargs).to(input.dtype)


def apply() -> None:
    """Replace `torch.histc` in this process."""
    torch.histc = histc
