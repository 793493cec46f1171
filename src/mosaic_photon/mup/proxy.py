"""Short training runs of small models: what the coordinate check and the LR sweep measure."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("embedding", "attention", "feed-forward", "block", "logits")
"""Layers whose outputs are measured; attention and feed-forward averaged over the blocks, block is the last one."""


@dataclass(frozen=True)
class AdamWSettings:
    """AdamW's settings of the CompleteP reference's coordinate check."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_norm: float = 1.0


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
