"""Names of parameters: 0.3's modules have others than 0.2.2's, and a job's names and checkpoints stay the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch.nn as nn

T = TypeVar("T")

MOVED = (
    (re.compile(r"\battention\.(w[qkv])\b"), r"attention.qkv_linear.\1"),
    (re.compile(r"^output\b"), "lm_head"),
)
"""0.2.2's name -> 0.3's."""
BACK = (
    (re.compile(r"\battention\.qkv_linear\.(w[qkv])\b"), r"attention.\1"),
    (re.compile(r"^lm_head\b"), "output"),
)
"""0.3's name -> 0.2.2's."""


def titan_name(name: str) -> str:
    """What 0.3 calls the parameter or module that a job calls `name`."""
    for ours, theirs in MOVED:
        name = ours.sub(theirs, name)
    return name


def job_name(name: str) -> str:
    """What a job, and its checkpoints, call 0.3's parameter or module `name`."""
    for theirs, ours in BACK:
        name = theirs.sub(ours, name)
    return name


class JobNames(nn.Module):
    """Mixed into a model of TorchTitan's: its parameters and its state dict have a job's names."""

    def keep_names(self) -> None:
        """Call it once, in the constructor. What TorchTitan copies for pipeline stages keeps them too."""
        self.register_state_dict_post_hook(_to_job_names)
        self.register_load_state_dict_pre_hook(_to_titan_names)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """torch's, by the job's names."""
        for name, parameter in super().named_parameters(*args, **kwargs):
            yield job_name(name), parameter


def _to_job_names(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    _replace(state, [(job_name(name), value) for name, value in state.items()])


def _to_titan_names(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    _replace(state, [(titan_name(name), value) for name, value in state.items()])


def _replace(state: dict[str, T], items: Iterable[tuple[str, T]]) -> None:
    state.clear()
    state.update(items)
