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
        raise ConfigError(
            f"width {width} is no multiple of the model's head size {d_head}; choose multiples of {width_step(args)}."
        )
    heads = width // d_head
    if width % width_step(args):
        raise ConfigError(
            f"width {width}: {heads} query heads do not divide into the model's groups of {group_size(args)}; choose "
            f"multiples of {width_step(args)}."
        )
    changes |= {"d_model" if is_mpt else "dim": width, "n_heads": heads}
    if is_mpt:
        if args.attn_config["kv_n_heads"] is not None:
            changes["attn_config"]["kv_n_heads"] = heads // group_size(args)
        ffn_size = args.ffn_config.get("ffn_hidden_size")
        if ffn_size:
            changes["ffn_config"] = args.ffn_config | {"ffn_hidden_size": ffn_size * width // own_width}
    else:
        changes["n_kv_heads"] = None if args.n_kv_heads is None else heads // group_size(args)
        # Feed-forward sizes are rounded up to a multiple of it: rounded alike, they keep their proportion.
        changes["multiple_of"] = max(1, args.multiple_of * width // own_width)
    return dataclasses.replace(args, **changes)


def group_size(args: Any) -> int:
    """Query heads that share a key and value head, where the model has their number; 1 where it follows from heads."""
    kv_heads: int | None = args.attn_config["kv_n_heads"] if hasattr(args, "d_model") else args.n_kv_heads
    return args.n_heads // kv_heads if kv_heads else 1


def width_step(args: Any) -> int:
    """Width of one group of heads: the widths that a model has are its multiples."""
    own_width: int = args.d_model if hasattr(args, "d_model") else args.dim
    return own_width // args.n_heads * group_size(args)


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
