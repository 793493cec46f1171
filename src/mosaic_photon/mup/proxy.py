"""Small training runs of a job's model at other sizes: what the coordinate check and the LR sweep measure."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaic_photon.compat.layout_independent_init import seed_init_by_name
from mosaic_photon.compat.unset_parameters import zero_before_init
from mosaic_photon.errors import ConfigError

KINDS = ("embedding", "attention", "feed-forward", "block", "logits")
"""Layers whose outputs are measured; attention and feed-forward averaged over the blocks, block is the last one."""


@dataclass(frozen=True)
class Hyper:
    """AdamW's settings of the CompleteP reference's coordinate check."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_norm: float = 1.0


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
        changes["attn_config"]["kv_n_heads"] = kv_heads(args.attn_config["kv_n_heads"], args.n_heads, heads)
        ffn_size = args.ffn_config.get("ffn_hidden_size")
        if ffn_size:
            changes["ffn_config"] = args.ffn_config | {"ffn_hidden_size": ffn_size * width // own_width}
    else:
        changes["n_kv_heads"] = kv_heads(args.n_kv_heads, args.n_heads, heads)
        # Feed-forward sizes are rounded up to a multiple of it: rounded alike, they keep their proportion.
        changes["multiple_of"] = max(1, args.multiple_of * width // own_width)
    return dataclasses.replace(args, **changes)


def kv_heads(own: int | None, own_heads: int, heads: int) -> int | None:
    """Key and value heads of a model with `heads` query heads in groups of the same size."""
    if own is None:
        return None
    group = own_heads // own
    if heads % group:
        raise ConfigError(f"{heads} query heads do not divide into the model's groups of {group}; choose other widths.")
    return heads // group


def build(model_cls: Callable[[Any], nn.Module], args: Any, seed: int, device: str) -> nn.Module:
    """The model on `device`, with the weights that a job with this seed begins from."""
    with torch.device("meta"):
        model = model_cls(args)
    zero_before_init(model)
    seed_init_by_name(model, seed)
    model.to_empty(device=device)
    torch.manual_seed(seed)
    with torch.no_grad():
        model.init_weights()  # type: ignore[operator]
    return model.train()


def stdlib_tokens(tokenizer_folder: str, n_tokens: int) -> Tensor:
    """The first `n_tokens` tokens [n_tokens] of the running Python's standard library: text that is always there."""
    from mosaic_photon.prepare.sources import stdlib_files
    from mosaic_photon.prepare.tokens import find_tokenizer, load_tokenizer

    tokenizer = load_tokenizer(find_tokenizer(tokenizer_folder)[0])
    ids: list[int] = []
    for path in stdlib_files():
        ids += tokenizer.encode(Path(path).read_text(encoding="utf-8", errors="replace")).ids
        if len(ids) >= n_tokens:
            break
    return torch.tensor(ids[:n_tokens])


def batches(tokens: Tensor, batch_size: int, seq_len: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random windows of `tokens`: inputs [B, S] and the tokens that follow them."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(seq_len + 1)
    while True:
        starts = torch.randint(len(tokens) - seq_len, (batch_size, 1), generator=generator)
        window = tokens[starts + offsets]
        yield window[:, :-1], window[:, 1:]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor], device: str) -> Tensor:
    """Mean cross-entropy of one batch."""
    inputs, labels = (part.to(device) for part in batch)
    return F.cross_entropy(model(inputs).flatten(0, 1).float(), labels.flatten())


def train_step(model: nn.Module, optimizer: Any, loss: Tensor, max_norm: float) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def measured(model: nn.Module) -> Iterator[dict[str, float]]:
    """Within it, each forward pass adds mean |output| by kind to the dict that this yields."""
    seen: dict[str, list[float]] = {kind: [] for kind in KINDS}
    result: dict[str, float] = {}
    blocks: list[Any] = list(model.layers.values())  # type: ignore[operator]
    modules = {
        "embedding": [model.tok_embeddings],
        "attention": [getattr(block, "attn", None) or block.attention for block in blocks],
        "feed-forward": [getattr(block, "ffn", None) or block.feed_forward for block in blocks],
        "block": [blocks[-1]],
        "logits": [model],
    }

    def hook(kind: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            seen[kind].append(output.detach().abs().mean().item())
            result[kind] = sum(seen[kind]) / len(seen[kind])

        return record

    handles = [module.register_forward_hook(hook(kind)) for kind in KINDS for module in modules[kind]]
    try:
        yield result
    finally:
        for handle in handles:
            handle.remove()
