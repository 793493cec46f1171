"""What a checkpoint's config.json says that names and shapes of weights do not: positions, norms, multipliers."""

import json
import warnings
from pathlib import Path
from typing import Any

from mosaic_photon.errors import ConfigError, ask_upstream
from mosaic_photon.models.mpt_mup.args import MPTMuPModelArgs, act_fn, kv_heads, logit_scale, softmax_scale
from mosaic_photon.models.mpt_mup.foundry import REFUSALS, MPTMuPConfig
from mosaic_photon.mup import table as rules

MULTIPLIERS = ("residual multiplier", "input multiplier", "logit scale")
"""What a model without a parametrization has as 1."""


def is_without_multipliers(folder: str | Path) -> bool:
    """Whether the folder's config.json says that its model multiplies nothing; False where there is none."""
    path = Path(folder) / "config.json"
    theirs = forward_pass(saved_config(path)) if path.is_file() else {}
    return all(theirs.get(name) == 1.0 for name in MULTIPLIERS)


def check_config(folder: str | Path, args: MPTMuPModelArgs, multipliers: bool = True) -> None:
    """Compare a checkpoint folder's config.json, where it has one, with the model.

    Args:
        multipliers: those too.

    Raises:
        ConfigError: naming what differs.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return
    theirs, ours = forward_pass(saved_config(path)), forward_pass(MPTMuPConfig(**args.foundry_config()))
    differ = [name for name in ours if theirs[name] != ours[name] and (multipliers or name not in MULTIPLIERS)]
    problems = [f"{name} is {theirs[name]!r}, the model has {ours[name]!r}" for name in differ]
    if problems:
        raise ConfigError(
            f"{path}: not a checkpoint of this architecture: {'; '.join(problems)}. Where the change is meant, load a "
            "copy of the folder without config.json."
        )


def saved_config(path: Path) -> MPTMuPConfig:
    """The config that llm-foundry, transformers or this package wrote, as this package reads it."""
    refused = f"{path}: is no config of an MPT"
    saved = ask_upstream(refused, (ValueError,), json.loads, path.read_bytes())
    tables = (saved, saved.get("attn_config") or {}) if isinstance(saved, dict) else (saved,)
    if not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{refused}: it and its attn_config must be tables.")
    if saved.get("model_type") not in ("mpt", "mpt_mup"):
        raise ConfigError(f"{path}: model_type is {saved.get('model_type')!r}, no MPT.")
    saved["attn_config"] = {**(saved.get("attn_config") or {}), "attn_impl": "sdpa", "rope_impl": "hf"}
    if "layer_norm_epsilon" in saved:
        saved = native_as_foundry(saved)
    with warnings.catch_warnings(action="ignore"):
        return ask_upstream(refused, REFUSALS, MPTMuPConfig, **saved)


def native_as_foundry(saved: dict[str, Any]) -> dict[str, Any]:
    """transformers' own MPT in llm-foundry's words. It always has ALiBi and no biases, whatever its config says."""
    attn = {**saved["attn_config"], "alibi": True, "alibi_bias_max": 8}
    return {**saved, "attn_config": attn, "no_bias": True, "norm_eps": saved["layer_norm_epsilon"], "logit_scale": None}


def forward_pass(config: MPTMuPConfig) -> dict[str, Any]:
    """What the forward pass depends on beside the weights, under the names that users set."""
    attn, parametrization = config.attn_config, config.parametrization
    positions = [name for name in ("alibi", "rope") if attn[name]] or ["learned"] * config.learned_pos_emb
    return {
        "n_heads": config.n_heads,
        "kv_n_heads": kv_heads(config),
        "positions": positions,
        "alibi_bias_max": attn["alibi_bias_max"] if attn["alibi"] else None,
        "rope_theta": attn["rope_theta"] if attn["rope"] else None,
        "rope_hf_config": attn["rope_hf_config"] if attn["rope"] else None,
        "clip_qkv": attn["clip_qkv"],
        "softmax scale": softmax_scale(config),
        "sliding_window_size": attn["sliding_window_size"],
        "attn_logit_softcapping": attn["attn_logit_softcapping"],
        "norm_type": config.norm_type.lower().removeprefix("low_precision_"),  # the same norm, rounded otherwise
        "norm_eps": config.norm_eps,
        "ffn_type": config.ffn_config["ffn_type"],
        "ffn_act_fn": act_fn(config),
        "peri_norm": config.peri_norm,
        "embedding_norm": config.embedding_norm,
        "residual multiplier": rules.residual_multiplier(parametrization),
        "input multiplier": rules.input_multiplier(parametrization),
        "logit scale": logit_scale(config),
        "final_logit_softcapping": config.final_logit_softcapping,
    }
