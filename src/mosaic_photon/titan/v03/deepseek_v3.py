"""DeepSeek-V3: 0.2.2's model args, flavors and names of parameters, on 0.3's tree of configs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.nn as nn
from torchtitan.models.common import ComplexRoPE
from torchtitan.models.deepseek_v3 import DeepSeekV3Model, make_mla_attention_config, parallelize_deepseekv3
from torchtitan.models.deepseek_v3.model import DeepSeekV3TransformerBlock
from torchtitan.models.deepseek_v3.state_dict_adapter import DeepSeekV3StateDictAdapter

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
    norms,
)
from mosaic_photon.titan.v03.names import EXPERTS, HEAD, Names

__all__ = ["Adapter", "DeepSeekV3", "DeepSeekV3Args", "flavors", "parallelize"]

parallelize = parallelize_deepseekv3


@dataclass
class DeepSeekV3Args(DecoderArgs):
    """0.2.2's `DeepSeekV3ModelArgs`."""

    max_batch_size: int = 8
    """Read by nobody."""
    max_seq_len: int = 4096 * 4
    vocab_size: int = 102400
    dim: int = 2048
    inter_dim: int = 10944
    moe_inter_dim: int = 1408
    n_layers: int = 27
    n_dense_layers: int = 1
    n_heads: int = 16
    norm_eps: float = 1e-5
    moe_args: MoEArgs = field(default_factory=MoEArgs)
    expert_parallel_comm_backend: str = "standard"
    """Read by nobody, too."""
    q_lora_rank: int = 0
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    attn_type: str = "sdpa"
    """sdpa and flex: flex attention, the one that 0.3 has."""
    attn_mask_type: str = "causal"
    original_seq_len: int = 4096
    rope_theta: float = 10000.0
    rope_factor: float = 40
    beta_fast: int = 32
    beta_slow: int = 1
    mscale: float = 1.0

    def titan_config(self, seed: int | None = None) -> Any:
        """As 0.2.2 has it: what stretches rotations, and attention's scale with them, is for sequences that are longer
        than those of the original training.

        Raises:
            ConfigError: as `experts`, or an attention that the model does not have.
        """
        layers = [_layer(self, layer_id) for layer_id in range(self.n_layers)]
        return DeepSeekV3.Config(seed=seed, layers=layers, **ends(self, norm_eps=None))


SMALL_EXPERTS = {"num_shared_experts": 2, "score_func": "softmax", "score_before_experts": False}
DEBUG = {"vocab_size": 2048, "dim": 256, "inter_dim": 1024, "moe_inter_dim": 256, "n_layers": 6, "mscale": 0.70}
FLEX = {"attn_type": "flex", "attn_mask_type": "block_causal"}
LARGE = {"n_heads": 128, "q_lora_rank": 1536} | FLEX


def flavors() -> dict[str, DeepSeekV3Args]:
    """0.2.2's, by name."""
    few = {"num_experts": 8, "top_k": 3} | SMALL_EXPERTS
    many = {"num_experts": 160, "top_k": 6, "num_expert_groups": 8, "num_limited_groups": 3, "route_scale": 16.0}
    most = {"num_experts": 256, "top_k": 8, "num_expert_groups": 8, "num_limited_groups": 4, "route_scale": 2.5}
    sizes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "debugmodel": (DEBUG, few),
        "debugmodel_flex_attn": (DEBUG | FLEX, few),
        "16B": ({"mscale": 0.70} | FLEX, {"num_experts": 64, "top_k": 6} | SMALL_EXPERTS),
        "236B": (
            {"dim": 5120, "inter_dim": 12288, "moe_inter_dim": 1536, "n_layers": 60} | LARGE, many | SMALL_EXPERTS
        ),
        "671B": (
            {"vocab_size": 129280, "dim": 7168, "inter_dim": 18432, "moe_inter_dim": 2048, "n_layers": 61,
             "n_dense_layers": 3} | LARGE,
            most | {"route_norm": True, "score_before_experts": False},
        ),
    }  # fmt: skip
    return {name: DeepSeekV3Args(**size, moe_args=MoEArgs(**moe)) for name, (size, moe) in sizes.items()}


class DeepSeekV3(JobModel, DeepSeekV3Model):
    """TorchTitan's, with a job's weights and names."""

    names = Names(HEAD, EXPERTS)

    @dataclass(kw_only=True, slots=True)
    class Config(CountedByName, DeepSeekV3Model.Config):
        args: Any
        seed: int | None = None


def _layer(args: DeepSeekV3Args, layer_id: int) -> Any:
    """One block, the first ones without experts."""
    last, dense = last_std(layer_id + 1), layer_id < args.n_dense_layers
    rope = ComplexRoPE.Config(
        dim=args.qk_rope_head_dim,
        max_seq_len=args.max_seq_len,
        theta=args.rope_theta,
        scaling="yarn" if args.max_seq_len > args.original_seq_len else "none",
        rope_factor=args.rope_factor,
        beta_fast=args.beta_fast,
        beta_slow=args.beta_slow,
        original_seq_len=args.original_seq_len,
    )
    attention = make_mla_attention_config(
        layer_id=layer_id,
        dim=args.dim,
        n_heads=args.n_heads,
        q_lora_rank=args.q_lora_rank,
        kv_lora_rank=args.kv_lora_rank,
        qk_nope_head_dim=args.qk_nope_head_dim,
        qk_rope_head_dim=args.qk_rope_head_dim,
        v_head_dim=args.v_head_dim,
        mscale=args.mscale,
        attn_backend=attention_kind(args, "flex"),
        linear_init=cut_normal(STD),
        norm_init={"weight": nn.init.ones_},
        depth_init=lambda layer_id: cut_normal(last),
        rope=rope,
    )
    attention.q_norm.eps = attention.kv_norm.eps = args.norm_eps
    return DeepSeekV3TransformerBlock.Config(
        attention=attention,
        **norms(args),
        feed_forward=feed_forward(args.dim, args.inter_dim, last) if dense else None,
        moe=None if dense else experts(args.moe_args, args.dim, args.moe_inter_dim, last),
    )


class Adapter(JobAdapter, DeepSeekV3StateDictAdapter):
    """TorchTitan's."""

    names = DeepSeekV3.names
