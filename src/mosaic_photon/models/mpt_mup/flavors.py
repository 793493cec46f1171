"""Named sizes: llm-foundry's published MPT pre-training configs (scripts/train/yamls/pretrain), and a debug size."""

from typing import Any

from mosaic_photon.models.mpt_mup.args import MPTMuPModelArgs


def _foundry(d_model: int, n_heads: int, n_layers: int) -> MPTMuPModelArgs:
    return MPTMuPModelArgs(d_model=d_model, n_heads=n_heads, n_layers=n_layers)


DEBUG: dict[str, Any] = {"d_model": 256, "n_heads": 4, "n_layers": 4, "vocab_size": 2048}

MPT_MUP_CONFIGS: dict[str, MPTMuPModelArgs] = {
    "debugmodel": MPTMuPModelArgs(**DEBUG),
    "125m": _foundry(768, 12, 12),
    "350m": _foundry(1024, 16, 24),
    "760m": _foundry(1536, 12, 24),
    "1b": _foundry(2048, 16, 24),
    "3b": _foundry(2560, 20, 32),
    "7b": _foundry(4096, 32, 32),
    "13b": _foundry(5120, 40, 40),
    "30b": _foundry(7168, 56, 48),
    "70b": _foundry(8192, 64, 80),
}
"""Flavor name -> model args; tied head, learned positions, biases, vocabulary 50368, 2048 positions, as published."""
