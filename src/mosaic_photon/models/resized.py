"""A job's model at other sizes, with the weights that a job begins from: what the coordinate check trains."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mosaic_photon.compat.layout_independent_init import seed_init_by_name
from mosaic_photon.errors import ConfigError


def resized(args: Any, width: int | None = None, depth: int | None = None) -> Any:
    """Model args at another width, head size and grouping kept, or depth. For MPT's and Llama's args.

    Raises:
        ConfigError: the width is no multiple of the head size, or of a group of heads.
    """
    is_mpt = hasattr(args, "d_model")
    changes: dict[str, Any] = {"n_layers": depth or args.n_layers}
    if is_mpt:  # the batches of such a run have no documents
        changes["attn_config"] = args.attn_config | {"attn_uses_sequence_id": False}
    if width is None:
        return dataclasses.replace(args, **changes)
    own_width = args.d_model if is_mpt else args.dim
    d_head = own_width // args.n_heads
    if width % d_head:
        raise ConfigError(f"width {width} is no multiple of the model's head size {d_head}.")
    heads = width // d_head
    changes |= {"d_model" if is_mpt else "dim": width, "n_heads": heads}
    if is_mpt:
        changes["attn_config"]["kv_n_heads"] = resized_kv_heads(args.attn_config["kv_n_heads"], args.n_heads, heads)
        ffn_size = args.ffn_config.get("ffn_hidden_size")
        if ffn_size:
            changes["ffn_config"] = args.ffn_config | {"ffn_hidden_size": ffn_size * width // own_width}
    else:
        changes["n_kv_heads"] = resized_kv_heads(args.n_kv_heads, args.n_heads, heads)
        # Feed-forward sizes are rounded up to a multiple of it: rounded alike, they keep their proportion.
        changes["multiple_of"] = max(1, args.multiple_of * width // own_width)
    return dataclasses.replace(args, **changes)


def resized_kv_heads(own: int | None, own_heads: int, heads: int) -> int | None:
    """Key and value heads of a model with `heads` query heads in groups of the same size."""
    if own is None:
        return None
    group = own_heads // own
    if heads % group:
        raise ConfigError(f"{heads} query heads do not divide into the model's groups of {group}; choose other widths.")
    return heads // group


def build(model_cls: Callable[[Any], nn.Module], args: Any, seed: int, device: str = "cpu") -> nn.Module:
    """The model on `device`, with the weights that a job with this seed begins from."""
    with torch.device("meta"):
        model = model_cls(args)
    seed_init_by_name(model, seed)
    model.to_empty(device=device)
    torch.manual_seed(seed)
    with torch.no_grad():
        model.init_weights()  # type: ignore[operator]
    return model.train()
