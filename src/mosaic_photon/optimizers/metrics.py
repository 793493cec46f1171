"""Per-parameter metrics of ADOPT and QHADOPT for Composer's OptimizerMonitor, under the names that Photon uses."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mosaic_photon.optimizers.update import Hyper


def per_parameter(name: str, row: tuple[Tensor, ...], calls: float, h: Hyper) -> dict[str, Tensor]:
    """Metrics after a step, each a 0-dim tensor.

    row: the parameter, its gradient, first and second moment; calls: number of steps taken; h: that step's numbers.
    An empty shard has norms of 0: without any, Composer's monitor would take the gradient's itself, on this rank alone.
    """
    p, g, m, v = row
    norm = torch.linalg.vector_norm
    extremes = {f"min/moment2/{name}": v.min(), f"max/moment2/{name}": v.max()} if v.numel() else {}
    return extremes | {
        f"l2_norm/moment/{name}": norm(m),
        f"l2_norm/moment2/{name}": norm(v),
        f"l2_norm/param/{name}": norm(p),
        f"l2_norm/update/{name}": norm(last_update(p, g, m, v, calls, h)),
        f"l2_norm/grad/{name}": norm(g),
    }


def last_update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, calls: float, h: Hyper) -> Tensor:
    """What the last step subtracted from p, reconstructed from what it left behind: nothing else is kept."""
    if calls <= 1:
        return torch.zeros_like(p)
    g = -g if h.maximize else g
    if h.coupled:  # the gradient's penalty used the parameter before the step, p to first order in lr
        g = g + h.coupled * p
    v = ((v - (1 - h.beta2) * g * g) / h.beta2).clamp_(min=0) if h.beta2 else v
    g_hat = g / v.sqrt().clamp_(min=h.eps)
    if h.clip is not None:
        g_hat.clamp_(-h.clip, h.clip)
    momentum_step = h.lr * ((1 - h.v1) * g_hat + h.v1 * m)
    before = (p + momentum_step) / (1 - h.decay) if h.decay != 1 else p
    return momentum_step + h.decay * before


def pre_reduce(metrics: dict[str, Any]) -> dict[str, Any]:
    """Norms squared, so that they add up over ranks; minima and maxima as they are."""
    return {key: value**2 if key.startswith("l2_norm") else value for key, value in metrics.items()}


def dist_reduce(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of whole parameters from `pre_reduce`d ones of all ranks: two collectives, whatever their number."""
    keys = sorted(metrics)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return {key: _finish(key, metrics[key]) for key in keys}
    per_rank: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(per_rank, keys)
    keys = sorted({key for rank in per_rank for key in rank})
    device = next((v.device for v in metrics.values() if isinstance(v, Tensor)), torch.device("cpu"))
    reduced: dict[str, Any] = {}
    for prefix, operation, absent in (
        ("l2_norm", dist.ReduceOp.SUM, 0.0),
        ("min", dist.ReduceOp.MIN, float("inf")),
        ("max", dist.ReduceOp.MAX, -float("inf")),
    ):
        names = [key for key in keys if key.startswith(prefix)]
        if names:
            values = torch.stack([torch.as_tensor(metrics.get(n, absent), device=device).float() for n in names])
            dist.all_reduce(values, operation)
            reduced.update({n: _finish(n, value) for n, value in zip(names, values, strict=True)})
    return reduced


def _finish(key: str, value: Any) -> Any:
    return value**0.5 if key.startswith("l2_norm") else value
