"""The gradient norm of TorchTitan's step, which keeps it to itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torchtitan.distributed import utils as dist_utils


@contextmanager
def gradient_norm_told(tell: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Inside, a step tells its gradient norm, a scalar, between clipping and the optimizer's step.

    TorchTitan reads it where it reports, after the optimizer's step; what `tell` raises ends the step.
    """
    clip = dist_utils.clip_grad_norm_

    def clip_and_tell(*args: Any, **kwargs: Any) -> torch.Tensor:
        norm = clip(*args, **kwargs)
        tell(norm)
        return norm

    dist_utils.clip_grad_norm_ = clip_and_tell
    try:
        yield
    finally:
        dist_utils.clip_grad_norm_ = clip
