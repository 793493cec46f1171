"""torch's stager of asynchronous checkpoints can be used once: the second save ends in `KeyError: <class 'type'>`.

It clears, after each staging, what it copies by. TorchTitan 0.2.2 keeps one stager for a whole job where
`checkpoint.async_mode = "async_with_pinned_mem"`. pytorch/pytorch#183413, pytorch/torchtitan#3476: torch 2.11 has it,
2.15 has not. Delete when the oldest torch that is run has pytorch/pytorch#183424.
"""

from functools import cache

from torch.distributed.checkpoint.staging import StateDictStager  # type: ignore[attr-defined]

NEEDED = "torch<2.15"


@cache
def apply() -> None:
    """Let this process use a stager again; what it has pinned stays so, for the next save, until the stager is gone."""
    StateDictStager.close = lambda stager: None  # type: ignore[method-assign]
