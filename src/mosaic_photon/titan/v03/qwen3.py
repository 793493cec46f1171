"""Qwen3: 0.2.2's model args, flavors and names of parameters, on 0.3's tree of configs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torchtitan.models.common import CosSinRoPE
from torchtitan.models.common.config_utils import get_attention_config, make_gqa_config
from torchtitan.models.qwen3 import Qwen3Model, parallelize_qwen3
from torchtitan.models.qwen3.model import Qwen3TransformerBlock
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter

from mosaic_photon.titan.v03.experts import MoEArgs, experts
from mosaic_photon.titan.v03.models import (
    STD,
    CountedByName,
    DecoderArgs,
    JobAdapter,
    JobModel,
    attention_kind,
    cut_normal,
    ends,
    feed_forward,
    last_std,
    norm,
    norms,
)

__all__ = ["Adapter", "Qwen3", "Qwen3Args", "flavors", "parallelize"]

parallelize = parallelize_qwen3


@dataclass
class Qwen3Args(DecoderArgs):
    """0.2.2's `Qwen3ModelArgs`."""

    dim: int = 1024
    n_layers: int = 28
    n_heads: int = 16
    n_kv_heads: int = 8
    vocab_size: int = 151936
    head_dim: int = 128
    hidden_dim: int = 3072
    norm_eps: float = 1e-6
    rope_theta: float = 1000000
    qk_norm: bool = True
    max_seq_len: int = 4096
    depth_init: bool = True
    attn_type: str = "sdpa"
    """As Llama 3's."""
    attn_mask_type: str = "causal"
    eos_id: int = 151645
    enable_weight_tying: bool = False
    moe_enabled: bool = False
    moe_inter_dim: int = 768
    moe_args: MoEArgs = field(default_factory=MoEArgs)

    def titan_config(self, seed: int | None = None) -> Any:
        """Separate projections of queries, keys and values, as 0.2.2's checkpoints have them.

        Raises:
            ConfigError: as `experts`.
        """
        layers = [_layer(self, layer_id) for layer_id in range(self.n_layers)]
        tied = self.enable_weight_tying
        return Qwen3.Config(seed=seed, layers=layers, enable_weight_tying=tied, **ends(self, self.norm_eps))


TIED = {"enable_weight_tying": True}
SIZES: dict[str, dict[str, Any]] = {
    "debugmodel": {**TIED, "vocab_size": 2048, "dim": 256, "n_layers": 8},
    "0.6B": TIED,
    "1.7B": {**TIED, "dim": 2048, "hidden_dim": 6144},
    "4B": {**TIED, "dim": 2560, "n_layers": 36, "n_heads": 32, "hidden_dim": 9728},
    "8B": {"dim": 4096, "n_layers": 36, "n_heads": 32, "hidden_dim": 12288},
    "14B": {"dim": 5120, "n_layers": 40, "n_heads": 40, "hidden_dim": 17408},
    "32B": {"dim": 5120, "n_layers": 64, "n_heads": 64, "hidden_dim": 25600},
}
WITH_EXPERTS: dict[str, tuple[int, dict[str, Any]]] = {
    "debugmodel_moe": (64, {"vocab_size": 2048, "dim": 256, "n_layers": 8}),
    "30B-A3B": (128, {
        "max_seq_len": 262144, "dim": 2048, "n_layers": 48, "n_heads": 32, "n_kv_heads": 4, "hidden_dim": 6144
    }),
    "235B-A22B": (128, {
        "dim": 4096, "n_layers": 94, "n_heads": 64, "n_kv_heads": 4, "hidden_dim": 12288, "rope_theta": 5000000,
        "moe_inter_dim": 1536,
    }),
}  # fmt: skip
"""How many, and the rest."""


def flavors() -> dict[str, Qwen3Args]:
    """0.2.2's, by name."""
    chosen = {"num_shared_experts": 0, "top_k": 8, "score_func": "softmax", "route_norm": True}
    moe = {
        name: Qwen3Args(**size, moe_enabled=True,
                        moe_args=MoEArgs(num_experts=number, score_before_experts=False, **chosen))  # type: ignore[arg-type]
        for name, (number, size) in WITH_EXPERTS.items()
    }  # fmt: skip
    return {name: Qwen3Args(**size) for name, size in SIZES.items()} | moe


class Qwen3(JobModel, Qwen3Model):
    """TorchTitan's, with a job's weights and names."""

    @dataclass(kw_only=True, slots=True)
    class Config(CountedByName, Qwen3Model.Config):
        args: Any
        seed: int | None = None

    def init_weights(self, **kwargs: Any) -> None:
        """Weights that are one, which `to_empty` has parted, begin as the embedding's do, as in 0.2.2."""
        if self.enable_weight_tying:
            self.lm_head.weight = self.tok_embeddings.weight  # type: ignore[union-attr]
        super().init_weights(**kwargs)


def _layer(args: Qwen3Args, layer_id: int) -> Any:
    """One block."""
    last = last_std(layer_id + 1 if args.depth_init else args.n_layers)
    attention = make_gqa_config(
        dim=args.dim,
        n_heads=args.n_heads,
        n_kv_heads=args.n_kv_heads,
        head_dim=args.head_dim,
        wqkv_param_init=cut_normal(STD),
        wo_param_init=cut_normal(last),
        inner_attention=get_attention_config(attention_kind(args, "flex", "varlen")),
        rope=CosSinRoPE.Config(dim=args.head_dim, max_seq_len=args.max_seq_len, theta=args.rope_theta),
        qk_norm=norm(args.head_dim, args.norm_eps) if args.qk_norm else None,
    )
    return Qwen3TransformerBlock.Config(
        **norms(args),
        attention=attention,
        moe=experts(args.moe_args, args.dim, args.moe_inter_dim, last) if args.moe_enabled else None,
        feed_forward=None if args.moe_enabled else feed_forward(args.dim, args.hidden_dim, last),
    )


class Adapter(JobAdapter, Qwen3StateDictAdapter):
    """TorchTitan's."""
