"""What says how one job's model stands in Hugging Face's format; `formats.py` and `mpt.py` say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """One job's model in Hugging Face's format."""

    config: dict[str, Any]
    """config.json, without what belongs to the tokenizer and the dtype."""
    to_hf: Callable[[Tensors], Tensors]
    """Tensors by the job's names, all of a layer's together -> by Hugging Face's, multipliers folded in."""
    from_hf: Callable[[Tensors], Tensors] | None = None
    """The inverse, of all tensors; None for an MPT, which has a way in of its own."""
    named: Mapping[str, Any] = field(default_factory=dict)
    """Hugging Face's names, with tensors on the meta device."""
    homeless: tuple[str, ...] = ()
    """Buffers of the job's model that have no place there; they must be 0."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What the folder has beside config and weights."""
