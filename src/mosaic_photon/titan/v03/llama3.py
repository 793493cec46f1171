"""Llama 3: 0.2.2's model args, flavors and names of parameters, on 0.3's tree of configs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torchtitan.models.common import ComplexRoPE, compute_ffn_hidden_dim
from torchtitan.models.common.config_utils import get_attention_config, make_gqa_config
from torchtitan.models.llama3 import Llama3Model, parallelize_llama
from torchtitan.models.llama3.model import Llama3TransformerBlock
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter

from mosaic_photon.titan.v03.models import (
    STD,
    DecoderArgs,
    JobAdapter,
    JobModel,
    attention_kind,
    cut_normal,
    ends,
    feed_forward,
    last_std,
    norms,
)

__all__ = ["Adapter", "Llama3", "Llama3Args", "flavors", "parallelize"]

parallelize = parallelize_llama


@dataclass
class RoPEScalingArgs:
    """How Llama 3.1 stretches its rotations."""

    scaling_factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass
class Llama3Args(DecoderArgs):
    """0.2.2's `TransformerModelArgs`."""

    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    vocab_size: int = 128256
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000
    rope_scaling_args: RoPEScalingArgs = field(default_factory=RoPEScalingArgs)
    max_seq_len: int = 131072
    depth_init: bool = True
    attn_type: str = "sdpa"
    """sdpa and flex: flex attention, the one that 0.3 has; varlen."""
    attn_mask_type: str = "causal"
    eos_id: int = 0

    def titan_config(self, seed: int | None = None) -> Any:
        """Separate projections of queries, keys and values, as 0.2.2's checkpoints have them."""
        layers = [_layer(self, layer_id) for layer_id in range(self.n_layers)]
        return Llama3.Config(seed=seed, layers=layers, **ends(self, self.norm_eps))


LARGE = {"n_kv_heads": 8, "rope_theta": 500000}
SIZES: dict[str, dict[str, Any]] = {
    "debugmodel": {"dim": 256, "n_layers": 6, "n_heads": 16, "vocab_size": 2048, "rope_theta": 500000},
    "8B": {**LARGE, "ffn_dim_multiplier": 1.3, "multiple_of": 1024},
    "70B": {**LARGE, "dim": 8192, "n_layers": 80, "n_heads": 64, "ffn_dim_multiplier": 1.3, "multiple_of": 4096},
    "405B": {**LARGE, "dim": 16384, "n_layers": 126, "n_heads": 128, "ffn_dim_multiplier": 1.2, "multiple_of": 4096},
}
ATTENTION = {
    "debugmodel_flex_attn": "flex",
    "debugmodel_varlen_attn": "varlen",
    "8B_flex": "flex",
    "8B_varlen": "varlen",
}


def flavors() -> dict[str, Llama3Args]:
    """0.2.2's, by name."""
    apart = {
        name: Llama3Args(**SIZES[name.split("_")[0]], attn_type=kind, attn_mask_type="block_causal")
        for name, kind in ATTENTION.items()
    }
    return {name: Llama3Args(**size) for name, size in SIZES.items()} | apart


class Llama3(JobModel, Llama3Model):
    """TorchTitan's, with a job's weights and names."""

    @dataclass(kw_only=True, slots=True)
    class Config(Llama3Model.Config):
        args: Any
        seed: int | None = None


def _layer(args: Llama3Args, layer_id: int) -> Any:
    """One block."""
    last = last_std(layer_id + 1 if args.depth_init else args.n_layers)
    scaling = args.rope_scaling_args
    rope = ComplexRoPE.Config(
        dim=args.dim // args.n_heads,
        max_seq_len=args.max_seq_len,
        theta=args.rope_theta,
        scaling="llama",
        scaling_factor=scaling.scaling_factor,
        low_freq_factor=scaling.low_freq_factor,
        high_freq_factor=scaling.high_freq_factor,
        original_max_position_embeddings=scaling.original_max_position_embeddings,
    )
    attention = make_gqa_config(
        dim=args.dim,
        n_heads=args.n_heads,
        n_kv_heads=args.n_kv_heads,
        wqkv_param_init=cut_normal(STD),
        wo_param_init=cut_normal(last),
        inner_attention=get_attention_config(attention_kind(args, "flex", "varlen")),
        rope=rope,
    )
    hidden = compute_ffn_hidden_dim(args.dim, multiple_of=args.multiple_of, ffn_dim_multiplier=args.ffn_dim_multiplier)
    return Llama3TransformerBlock.Config(
        **norms(args),
        attention=attention,
        feed_forward=feed_forward(args.dim, hidden, last),
    )


class Adapter(JobAdapter, Llama3StateDictAdapter):
    """TorchTitan's."""
