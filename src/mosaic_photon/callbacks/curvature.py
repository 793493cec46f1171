"""How curved the loss is along the path taken, from two consecutive points and their gradients.

s = θ_k − θ_{k−1}, y = g_k − g_{k−1}, as in AdaBB (arXiv 2401.08024). g is the gradient that the optimizer was given:
where clipping scaled the two by different factors, y is not the change of the loss's gradient.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

import torch

SUMS = ("ss", "sy", "yy", "ratio", "relative_ratio")
"""Sums over a parameter's elements from which the measures follow: s², s·y, y², (y/s)², (y/(s·g))²."""

MEASURES = (
    "long_bb",
    "short_bb",
    "local_lipschitz",
    "second_derivative_estimate",
    "second_to_first_derivative_ratio",
)


def local_sums(
    steps: Sequence[torch.Tensor], changes: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """SUMS over each of n shards, from s, y and g_k of the same shapes: {name: [n], float64}.

    Elements that did not move (s = 0), or without gradient where it divides, tell nothing and are left out.
    """
    rows = []
    for s, y, g in zip(steps, changes, gradients, strict=True):
        s, y, g = (tensor.float() if tensor.dtype.itemsize < 4 else tensor for tensor in (s, y, g))
        ratio = _quotient(y, s)
        products = (s * s, s * y, y * y, ratio.square(), _quotient(ratio, g).square())
        rows.append(torch.stack([product.sum(dtype=torch.float64) for product in products]))
    return dict(zip(SUMS, torch.stack(rows).unbind(dim=1), strict=True))


def _quotient(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    return torch.where(denominator == 0, 0.0, numerator / denominator)


def measures(sums: Mapping[str, float]) -> dict[str, float]:
    """MEASURES of one parameter from its SUMS; nan where a denominator is zero.

    long_bb = s²/s·y, short_bb = s·y/y² (the two Barzilai-Borwein step sizes), local_lipschitz = |y|/|s|,
    second_derivative_estimate = |y/s|, and |(y/s)/g|, its ratio to the first derivative.
    """
    ss, sy, yy = sums["ss"], sums["sy"], sums["yy"]
    return {
        "long_bb": _divide(ss, sy),
        "short_bb": _divide(sy, yy),
        "local_lipschitz": math.sqrt(_divide(yy, ss)),
        "second_derivative_estimate": math.sqrt(sums["ratio"]),
        "second_to_first_derivative_ratio": math.sqrt(sums["relative_ratio"]),
    }


def _divide(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, median, min and max over the finite values; nothing where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return {}
    return {
        "mean": statistics.fmean(finite),
        "median": statistics.median(finite),
        "min": min(finite),
        "max": max(finite),
    }
