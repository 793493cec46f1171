"""How a job's model stands in a folder of Hugging Face's: its config.json, and its weights by their names there.

TorchTitan's own adapters give names and layouts; `[mup]`'s multipliers go into the weights. One table of a model's
config serves both ways: export writes it, import compares a folder's with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mosaic_photon.checkpoints.hf import in_hf_format
from mosaic_photon.errors import ConfigError
from mosaic_photon.mup import table as rules
from mosaic_photon.use.checkpoint import JobModel
from mosaic_photon.use.form import Format

Refusals = dict[str, bool]
"""What transformers' model cannot do -> whether the job's model does it."""


def format_of(model: JobModel) -> Format:
    """The job's model in Hugging Face's format.

    Raises:
        ConfigError: transformers has no such model, with the reason.
    """
    name = model.job.model.name.removesuffix("_mosaic")
    if name == "mpt_mup":
        from mosaic_photon.use.mpt import mpt_format

        return mpt_format(model)
    if name not in CONFIGS:
        known = ", ".join(f"{known}_mosaic" for known in sorted([*CONFIGS, "mpt_mup"]))
        raise ConfigError(f"model.name: {model.job.model.name} has no form in transformers here; these have: {known}.")
    config, refusals = CONFIGS[name](model)
    reasons = [reason for reason, applies in refusals.items() if applies]
    if reasons:
        raise ConfigError(
            f"{model.job.model.name} {model.job.model.flavor} is no {config['model_type']} of transformers': "
            f"{'; '.join(reasons)}."
        )
    named, lost = in_hf_format(model.job, model.spec, model.meta)
    if lost:
        raise ConfigError(f"{model.job.model.name}: TorchTitan's adapter leaves out {', '.join(lost[:3])}.")
    adapter = model.spec.state_dict_adapter(model.args, None)
    back = adapter.from_hf(dict(named))
    return Format(
        config,
        to_hf=lambda part: adapter.to_hf({name: _times(t, multiplier(name, model.args)) for name, t in part.items()}),
        from_hf=lambda part: {
            name: _times(t, 1 / multiplier(name, model.args)) for name, t in adapter.from_hf(part).items()
        },
        named=named,
        homeless=tuple(name for name in model.shapes if name not in back),
    )


def _times(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1.0 else tensor * factor


def multiplier(name: str, args: Any) -> float:
    """What Llama 3's weight `name` is multiplied by, so that a model without `[mup]` computes the same."""
    parametrization = getattr(args, "parametrization", None)
    if parametrization is None:
        return 1.0
    if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")):
        return rules.residual_multiplier(parametrization)
    if name.endswith("attention.wq.weight"):
        d_head = args.dim // args.n_heads
        return rules.softmax_scale(d_head, parametrization) * d_head**0.5
    ends = {"tok_embeddings.weight": rules.input_multiplier, "output.weight": rules.output_multiplier}
    return ends[name](parametrization) if name in ends else 1.0


def _llama(model: JobModel) -> tuple[dict[str, Any], Refusals]:
    args = model.args
    scaling = args.rope_scaling_args
    stretched = None if scaling.scaling_factor == 1 else {
        "rope_type": "llama3",
        "factor": float(scaling.scaling_factor),
        "low_freq_factor": float(scaling.low_freq_factor),
        "high_freq_factor": float(scaling.high_freq_factor),
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }  # fmt: skip
    return {
        **_common(args, "llama", "LlamaForCausalLM"),
        "intermediate_size": model.shapes["layers.0.feed_forward.w1.weight"][0],
        "num_key_value_heads": args.n_kv_heads or args.n_heads,
        "head_dim": args.dim // args.n_heads,
        "rope_scaling": stretched,
        "tie_word_embeddings": False,
        "mlp_bias": False,
    }, {}


def _qwen3(model: JobModel) -> tuple[dict[str, Any], Refusals]:
    args = model.args
    config = {
        **_common(args, "qwen3", "Qwen3ForCausalLM"),
        "intermediate_size": args.hidden_dim,
        "num_key_value_heads": args.n_kv_heads,
        "head_dim": args.head_dim,
        "rope_scaling": None,
        "tie_word_embeddings": args.enable_weight_tying,
        "use_sliding_window": False,
    }
    refusals = {"it always has norms of queries and keys (qk_norm)": not args.qk_norm}
    if not args.moe_enabled:
        return config, refusals
    moe = args.moe_args
    config |= {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k, "moe_intermediate_size": args.moe_inter_dim, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "norm_topk_prob": moe.route_norm,
    }  # fmt: skip
    return config, refusals | _routing(moe, "softmax") | {
        "it has no shared experts (num_shared_experts)": moe.num_shared_experts > 0,
        "it has no groups of experts (num_expert_groups)": moe.num_expert_groups is not None,
        "its experts' outputs are not scaled (route_scale)": moe.route_scale != 1,
    }


def _deepseek_v3(model: JobModel) -> tuple[dict[str, Any], Refusals]:
    args, moe = model.args, model.args.moe_args
    longer = args.max_seq_len > args.original_seq_len
    stretched = {
        "rope_type": "yarn", "factor": float(args.rope_factor), "beta_fast": args.beta_fast,
        "beta_slow": args.beta_slow, "mscale": float(args.mscale), "mscale_all_dim": float(args.mscale),
        "original_max_position_embeddings": args.original_seq_len,
    }  # fmt: skip
    config = {
        **_common(args, "deepseek_v3", "DeepseekV3ForCausalLM"),
        "max_position_embeddings": int(args.original_seq_len * args.rope_factor) if longer else args.max_seq_len,
        "intermediate_size": args.inter_dim,
        "moe_intermediate_size": args.moe_inter_dim,
        "num_key_value_heads": args.n_heads,
        "n_shared_experts": moe.num_shared_experts,
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "n_group": moe.num_expert_groups or 1,
        "topk_group": moe.num_limited_groups or 1,
        "norm_topk_prob": moe.route_norm,
        "routed_scaling_factor": float(moe.route_scale),
        "first_k_dense_replace": args.n_dense_layers,
        "q_lora_rank": args.q_lora_rank,
        "kv_lora_rank": args.kv_lora_rank,
        "qk_nope_head_dim": args.qk_nope_head_dim,
        "qk_rope_head_dim": args.qk_rope_head_dim,
        "v_head_dim": args.v_head_dim,
        "rope_scaling": stretched if longer else None,
        "rope_interleave": True,
        "tie_word_embeddings": False,
    }
    return config, _routing(moe, "sigmoid") | {
        "its queries are always compressed (q_lora_rank is 0)": args.q_lora_rank == 0,
        f"its norms of compressed queries, keys and values have eps 1e-6 (norm_eps is {args.norm_eps:g})":
            args.norm_eps != 1e-6,
        "it always has shared experts (num_shared_experts is 0)": moe.num_shared_experts == 0,
    }  # fmt: skip


def _routing(moe: Any, score_func: str) -> Refusals:
    return {
        f"it scores experts by {score_func} (moe_args.score_func is {moe.score_func!r})": moe.score_func != score_func,
        "it scales what experts give, not what they get (moe_args.score_before_experts)": moe.score_before_experts,
        "its gate has no bias (moe_args.gate_bias)": moe.gate_bias,
    }


def _common(args: Any, model_type: str, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture], "model_type": model_type, "vocab_size": args.vocab_size,
        "hidden_size": args.dim, "num_hidden_layers": args.n_layers, "num_attention_heads": args.n_heads,
        "hidden_act": "silu", "max_position_embeddings": args.max_seq_len, "rms_norm_eps": args.norm_eps,
        "rope_theta": float(args.rope_theta), "attention_bias": False, "use_cache": True,
    }  # fmt: skip


CONFIGS: dict[str, Callable[[JobModel], tuple[dict[str, Any], Refusals]]] = {
    "llama3": _llama,
    "qwen3": _qwen3,
    "deepseek_v3": _deepseek_v3,
}
