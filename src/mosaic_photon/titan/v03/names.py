"""Names of parameters: 0.3's modules have others than 0.2.2's, and a job's names and checkpoints stay the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

HEAD = {"output": "lm_head"}
QKV = {f"attention.{name}": f"attention.qkv_linear.{name}" for name in ("wq", "wk", "wv")}
EXPERTS = {
    "moe.experts.w1": "moe.routed_experts.inner_experts.w1_EFD",
    "moe.experts.w2": "moe.routed_experts.inner_experts.w2_EDF",
    "moe.experts.w3": "moe.routed_experts.inner_experts.w3_EFD",
    "moe.expert_bias": "moe.expert_bias_E",
}
"""0.2.2's part of a name -> 0.3's."""


class Names:
    """What a job, and its checkpoints, call a model's modules and tensors, and what 0.3 calls them."""

    def __init__(self, *tables: dict[str, str]) -> None:
        pairs = [pair for table in tables for pair in table.items()]
        self._titan = [(_whole(ours), theirs) for ours, theirs in pairs]
        self._job = [(_whole(theirs), ours) for ours, theirs in pairs]

    def titan(self, name: str) -> str:
        """What 0.3 calls what a job calls `name`."""
        for ours, theirs in self._titan:
            name = ours.sub(theirs, name)
        return name

    def job(self, name: str) -> str:
        """What a job calls what 0.3 calls `name`."""
        for theirs, ours in self._job:
            name = theirs.sub(ours, name)
        return name

    def keep(self, model: Any) -> None:
        """Let the model's state dict have a job's names; the copies that a pipeline's stages are keep them too."""
        model.register_state_dict_post_hook(partial(_rename, self.job))
        model.register_load_state_dict_pre_hook(partial(_rename, self.titan))


def _whole(part: str) -> re.Pattern[str]:
    """`part` between dots or ends of a name."""
    return re.compile(rf"(?<![^.]){re.escape(part)}(?![^.])")


def _rename(renamed: Callable[[str], str], module: Any, state: dict[str, Any], *_: Any) -> None:
    items = [(renamed(name), value) for name, value in state.items()]
    state.clear()
    state.update(items)


OF_ENDS = Names(HEAD)
"""For what stands at the top of a model, which pipelines share out."""
