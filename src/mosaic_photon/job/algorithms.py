"""llm-foundry's table `algorithms`: what stands in its place in a job of TorchTitan."""

from typing import Any

from mosaic_photon.errors import nearest

INSTEAD = {
    "gradient_clipping": "training.max_norm bounds the gradient's norm, as clipping_type = 'norm' does",
    "low_precision_layernorm": "mpt_mup_mosaic has it: norm_type = 'low_precision_layernorm', the default",
    "alibi": "mpt_mup_mosaic has it: [model.overrides] attn_config = { alibi = true }",
    "gated_linear_units": "mpt_mup_mosaic has it: [model.overrides] ffn_config = { ffn_type = 'mptglu' }",
}
"""Algorithms of llm-foundry's registry -> what to set instead."""


def instead_of(table: Any) -> str:
    """What to set instead of each algorithm that `table` names, or of all where it is no table."""
    names = list(table) if isinstance(table, dict) and table else list(INSTEAD)
    told = [f"{name}: {INSTEAD.get(name) or f'there is none.{nearest(name, INSTEAD)}'}" for name in names]
    return "algorithms is llm-foundry's table, and not read here. " + "; ".join(told) + "."
