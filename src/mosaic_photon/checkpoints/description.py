"""What a model computes beyond its tensors: heads, positions, norms, caps, multipliers. A file in each checkpoint.

Written are all of the model args; compared is what shapes the model's function and is not seen in its tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mosaic_photon import stores
from mosaic_photon.errors import ConfigError
from mosaic_photon.mup.table import on_the_function
from mosaic_photon.names import dotted

FILE = "mosaic_photon.json"
VERSION = 1
IN_TENSORS = {
    "dim", "d_model", "n_layers", "vocab_size", "multiple_of", "ffn_dim_multiplier", "hidden_dim", "inter_dim",
    "moe_inter_dim", "expansion_ratio", "ffn_config.ffn_hidden_size", "moe_args.num_experts", "attn_config.fused_qkv",
}  # fmt: skip
"""Names and shapes of the tensors say it."""
HOW_IT_RUNS = {
    "_enforced", "attn_type", "dtype", "max_batch_size", "expert_parallel_comm_backend", "moe_args.use_grouped_mm",
    "moe_args._debug_force_load_balance", "attn_config.attn_impl", "attn_config.rope_impl",
}  # fmt: skip
"""The same function, computed otherwise."""
HOW_IT_LEARNS = {
    "depth_init", "init_config", "embedding_fraction", "resid_pdrop", "emb_pdrop", "attn_config.attn_pdrop",
    "moe_args.load_balance_coeff", "eos_id", "mup_raw",
}  # fmt: skip
"""Options of training, which a run may change on its way as it may its learning rate; `eos_id` is read by nothing."""
LEFT_OUT = IN_TENSORS | HOW_IT_RUNS | HOW_IT_LEARNS


def write(folder: str, model_args: Any) -> None:
    """Write the description into a checkpoint's folder, before the file that makes the checkpoint complete.

    Args:
        model_args: a dataclass, as the model was built from it.
    """
    text = json.dumps({"version": VERSION, "model": asdict(model_args)}, indent=2, sort_keys=True, default=str)
    stores.write(stores.join(folder, FILE), text.encode())


def changes(folder: str, model_args: Any) -> list[str] | None:
    """A line for each way in which the checkpoint's model computes otherwise than the job's; None if it does not say.

    What an older release did not have counts as its default.

    Raises:
        ConfigError: the description cannot be read.
    """
    model = read(folder)
    if model is None:
        return None
    kind = type(model_args)
    written_out = getattr(kind, "function_of", dict)  # a model whose args have several ways to say the same
    ours, default = (function_of(written_out(asdict(args))) for args in (model_args, kind()))
    try:
        theirs = function_of(written_out(model))
    except (ConfigError, TypeError) as error:
        raise ConfigError(
            f"{stores.join(folder, FILE)} is no description of a model that this release knows: {error}"
        ) from None
    theirs = {name: value for name, value in default.items() if name in ours} | theirs
    return [
        f"{name} is {json.dumps(theirs.get(name))} in the checkpoint and {json.dumps(ours.get(name))} in the job"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]


def read(folder: str) -> dict[str, Any] | None:
    """The model args in a checkpoint's description; None where it has none. Raises ConfigError: it cannot be read."""
    path = stores.join(folder, FILE)
    try:
        saved = json.loads(stores.read(path))
        version, model = saved["version"], saved["model"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no description of a model ({error!r}).") from None
    if version != VERSION:
        raise ConfigError(f"{path} has version {version!r}; this release reads version {VERSION}.")
    return model


def differences(one: str, other: str) -> list[str]:
    """A line for each way in which the models of two checkpoints compute differently, of what both say."""
    ours, theirs = (function_of(read(folder) or {}) for folder in (one, other))
    return [
        f"{name} is {json.dumps(ours[name])} in the first and {json.dumps(theirs[name])} in the second"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]


def function_of(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's args shapes its function and is not seen in its tensors, by dotted names."""
    args = json.loads(json.dumps(model_args, default=str))
    args["mup"] = on_the_function(args.get("mup", {}))
    if "n_kv_heads" in args:
        args["n_kv_heads"] = args["n_kv_heads"] or args["n_heads"]
    if "norm_type" in args:
        args["norm_type"] = args["norm_type"].lower().removeprefix("low_precision_")  # the same norm, rounded otherwise
    if args.get("attn_type") == "sdpa":
        args["attn_mask_type"] = "causal"  # it takes no other mask
    if args.get("attn_type") == "sdpa" or not args.get("every_n_layers_nope"):
        args.pop("fixed_attn_block_size", None)
    longest = args.pop("max_seq_len", None)
    if "mscale" in args:  # DeepSeek V3 stretches its positions, and scales its scores, beyond this length
        args["max_seq_len > original_seq_len"] = longest > args["original_seq_len"]
    flat = {name: value for name, value in dotted(args) if not LEFT_OUT & {name, name.partition(".")[0]}}
    if flat.get("attn_config.rope") and flat.get("attn_config.rope_hf_config.type") == "dynamic":
        flat["max_seq_len"] = longest
    return flat
