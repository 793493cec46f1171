"""The MPT in Hugging Face's format, in one of two forms.

Where transformers' own MPT has the architecture (ALiBi, no biases, multi-head, GELU), the multipliers are folded into
the weights and the folder needs transformers alone. Otherwise the folder carries the multipliers in its config, and a
stub that loads this package's model (`trust_remote_code=True`).
"""

from __future__ import annotations

from typing import Any

from mosaic_photon.models.mpt_mup.args import DEFAULT_ACT_FN, MPTMuPModelArgs, act_fn, logit_scale, softmax_scale
from mosaic_photon.models.mpt_mup.hf import match_qkv, multiplier
from mosaic_photon.models.mpt_mup.state_dict_adapter import to_foundry_name
from mosaic_photon.mup import table as rules
from mosaic_photon.use.checkpoint import JobModel
from mosaic_photon.use.form import Format, Tensors

STUB = "modeling_mpt_mup.py"
STUB_TEXT = '''"""Loads the MPT of mosaic-photon; needs `pip install mosaic-photon`."""

from mosaic_photon.models.mpt_mup.foundry import MPTMuPConfig as _Config
from mosaic_photon.models.mpt_mup.foundry import MPTMuPForCausalLM as _Model


class MPTMuPConfig(_Config):
    pass


class MPTMuPForCausalLM(_Model):
    config_class = MPTMuPConfig
'''
EMBEDDING, HEAD = "tok_embeddings.wte.weight", "output.lm_head.weight"


def mpt_format(model: JobModel) -> Format:
    """Folded or carried, as the model's args allow. Import reads MPTs by `models.mpt_mup.hf.read_checkpoint`."""
    args: MPTMuPModelArgs = model.args
    if not is_native(args):
        return Format(carried_config(args), _renamed, files={STUB: STUB_TEXT.encode()})
    return Format(native_config(args), lambda part: _renamed(folded(part, args)))


def _renamed(part: Tensors) -> Tensors:
    return {to_foundry_name(name): tensor for name, tensor in part.items()}


def is_native(args: MPTMuPModelArgs) -> bool:
    """Whether transformers' own MPT has this architecture, once the multipliers are folded."""
    attn = args.attn_config
    return bool(
        attn["alibi"]
        and attn["alibi_bias_max"] == 8  # transformers reads the value and does not use it
        and args.no_bias
        and args.kv_n_heads == args.n_heads
        and not (attn["qk_ln"] or attn["qk_gn"])
        and attn["attn_logit_softcapping"] is None
        and attn["sliding_window_size"] == -1
        and args.ffn_config.get("ffn_type", "mptmlp") == "mptmlp"
        and act_fn(args) == DEFAULT_ACT_FN
        and args.ffn_hidden_size == 4 * args.d_model
        and args.norm_type in ("layernorm", "low_precision_layernorm")
        and not (args.peri_norm or args.embedding_norm)
        and args.final_logit_softcapping is None
    )


def folded(part: Tensors, args: MPTMuPModelArgs) -> Tensors:
    """Branches' multipliers in their last layers, those of input and output in embedding and head, projections fused.

    A tied head whose multipliers differ becomes a head of its own.
    """
    factors = {name: multiplier(name, args) for name in part}
    out = {name: tensor if factors[name] == 1.0 else tensor * factors[name] for name, tensor in part.items()}
    if EMBEDDING in part and not stays_tied(args) and args.tie_word_embeddings:
        out[HEAD] = part[EMBEDDING] * logit_scale(args)
    return match_qkv(out, args, fused=True)


def stays_tied(args: MPTMuPModelArgs) -> bool:
    """Whether head and embedding are one tensor, multipliers folded in."""
    ends = rules.input_multiplier(args.parametrization), logit_scale(args)
    return args.tie_word_embeddings and ends == (1.0, 1.0)


def native_config(args: MPTMuPModelArgs) -> dict[str, Any]:
    attn = args.attn_config
    return {
        "architectures": ["MptForCausalLM"], "model_type": "mpt", "d_model": args.d_model, "n_heads": args.n_heads,
        "n_layers": args.n_layers, "expansion_ratio": 4, "max_seq_len": args.max_seq_len,
        "vocab_size": args.vocab_size, "no_bias": True, "norm_type": "low_precision_layernorm",
        "layer_norm_epsilon": args.norm_eps, "learned_pos_emb": False, "tie_word_embeddings": stays_tied(args),
        "use_cache": True,
        "attn_config": {"alibi": True, "alibi_bias_max": attn["alibi_bias_max"], "clip_qkv": attn["clip_qkv"],
                        "softmax_scale": softmax_scale(args), "attn_impl": "torch"},
    }  # fmt: skip


def carried_config(args: MPTMuPModelArgs) -> dict[str, Any]:
    module = STUB.removesuffix(".py")
    return {
        **args.foundry_config(),
        "architectures": ["MPTMuPForCausalLM"], "model_type": "mpt_mup", "use_cache": True,
        "auto_map": {"AutoConfig": f"{module}.MPTMuPConfig", "AutoModelForCausalLM": f"{module}.MPTMuPForCausalLM"},
    }  # fmt: skip
