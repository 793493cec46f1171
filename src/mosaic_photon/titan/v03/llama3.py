"""Llama 3: 0.2.2's model args, flavors and names of parameters, on 0.3's tree of configs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch.nn as nn
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm, compute_ffn_hidden_dim
from torchtitan.models.common.config_utils import get_attention_config, make_ffn_config, make_gqa_config
from torchtitan.models.llama3 import Llama3Model
from torchtitan.models.llama3.model import Llama3TransformerBlock
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter

from mosaic_photon.compat.layout_independent_init import ParameterPart, initialised_by_parts, job_seed
from mosaic_photon.titan.v03.args import BaseModelArgs
from mosaic_photon.titan.v03.names import JobNames, job_name, titan_name

__all__ = [
    "Embedding",
    "Llama3",
    "Llama3Adapter",
    "Llama3Args",
    "Llama3TransformerBlock",
    "config_of",
    "cut_normal",
    "flavors",
]

STD = 0.02
"""Of a hidden weight at first; TorchTitan's own."""


@dataclass
class RoPEScalingArgs:
    """How Llama 3.1 stretches its rotations."""

    scaling_factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass
class Llama3Args(BaseModelArgs):
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

    def update_from_config(self, job_config: Any, **kwargs: Any) -> None:
        """The positions are those of the job's sequences."""
        seq_len = job_config.training.seq_len
        if seq_len > self.max_seq_len:
            logging.getLogger().warning(f"Sequence length {seq_len} exceeds original maximum {self.max_seq_len}.")
        self.max_seq_len = seq_len

    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
        """TorchTitan's count."""
        counted: tuple[int, int] = config_of(self).get_nparams_and_flops(model, seq_len)
        return counted


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


class Llama3(JobNames, Llama3Model):
    """TorchTitan's, whose weights depend on the seed and their names alone."""

    @dataclass(kw_only=True, slots=True)
    class Config(Llama3Model.Config):
        args: Any
        """Llama3Args, those of the job."""
        seed: int | None = None
        """The job's; None draws one."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.model_args = config.args
        self.keep_names()

    def init_weights(self, **kwargs: Any) -> None:
        """TorchTitan's, unless who calls it has seeded the parameters. Collective where the job has no seed."""
        if any(isinstance(parameter, ParameterPart) for parameter in self.parameters()):
            super().init_weights(**kwargs)
            return
        with initialised_by_parts(self, job_seed(self.config.seed)):
            super().init_weights(**kwargs)


def config_of(args: Llama3Args, seed: int | None = None) -> Any:
    """0.3's config of the model: separate projections of queries, keys and values, as 0.2.2's checkpoints have them."""
    head_std = args.dim**-0.5
    return Llama3.Config(
        args=args,
        seed=seed,
        dim=args.dim,
        vocab_size=args.vocab_size,
        tok_embeddings=Embedding.Config(
            num_embeddings=args.vocab_size, embedding_dim=args.dim, param_init={"weight": nn.init.normal_}
        ),
        norm=_norm(args),
        lm_head=Linear.Config(
            in_features=args.dim, out_features=args.vocab_size, param_init=cut_normal(head_std, 3 * head_std)
        ),
        layers=[_layer(args, layer_id) for layer_id in range(args.n_layers)],
    )


def _layer(args: Llama3Args, layer_id: int) -> Any:
    """One block; what writes into the residual stream begins the smaller, the deeper it stands."""
    last = cut_normal(STD / (2 * (layer_id + 1 if args.depth_init else args.n_layers)) ** 0.5)
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
        wo_param_init=last,
        inner_attention=get_attention_config("varlen" if args.attn_type == "varlen" else "flex"),
        rope=rope,
    )
    hidden = compute_ffn_hidden_dim(args.dim, multiple_of=args.multiple_of, ffn_dim_multiplier=args.ffn_dim_multiplier)
    feed_forward = make_ffn_config(dim=args.dim, hidden_dim=hidden, w1_param_init=cut_normal(STD), w2w3_param_init=last)
    return Llama3TransformerBlock.Config(
        attention_norm=_norm(args), ffn_norm=_norm(args), attention=attention, feed_forward=feed_forward
    )


def _norm(args: Llama3Args) -> Any:
    return RMSNorm.Config(normalized_shape=args.dim, eps=args.norm_eps, param_init={"weight": nn.init.ones_})


def cut_normal(std: float, cut: float = 2.0) -> dict[str, Any]:
    """How a linear layer begins: normal, cut off on both sides."""
    return {"weight": partial(nn.init.trunc_normal_, std=std, a=-cut, b=cut)}


class Llama3Adapter(Llama3StateDictAdapter):
    """TorchTitan's to and from Hugging Face's format, of a state dict with a job's names."""

    def __init__(self, args: Llama3Args, hf_assets_path: str | None) -> None:
        super().__init__(config_of(args), hf_assets_path)

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Names and layout of Hugging Face's."""
        named: dict[str, Any] = super().to_hf({titan_name(name): value for name, value in state_dict.items()})
        return named

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        """Names and layout of a job's."""
        return {job_name(name): value for name, value in super().from_hf(hf_state_dict).items()}
