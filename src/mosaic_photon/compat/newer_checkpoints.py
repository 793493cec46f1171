"""torch cannot read the `.metadata` of a checkpoint that a newer torch has written: "too many values to unpack".

In 2.15 a tensor's properties have strides too, at their end; in 2.11 they have not. Here a torch takes those that it
knows. No upstream issue. Delete when the oldest torch that is run has strides.
"""

from functools import cache
from typing import Any

NEEDED = "torch<2.15"


@cache
def apply() -> None:
    """Let this process read them."""
    from torch.distributed.checkpoint.metadata import TensorProperties

    known, set_all = len(TensorProperties().__getstate__()), TensorProperties.__setstate__

    def set_known(properties: Any, state: tuple[Any, ...]) -> None:
        set_all(properties, state[:known])

    TensorProperties.__setstate__ = set_known  # type: ignore[method-assign]
