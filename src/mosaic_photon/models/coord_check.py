"""Coordinate check: do activations keep their size as the model grows?

Protocol of CompleteP's reference (Dey et al. 2025): train the model for 10 steps at each width or depth and follow
mean |activation|. The verdict is on slopes: the least-squares slope of log mean |activation| against log size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mosaic_photon.models.proxy import KINDS, Hyper, adamw, batches, build, loss_of, measured, train_step

BATCH, SEQ_LEN = 4, 128
"""Sequences and tokens of each a step: small, for two CPU cores; the reference uses 8 x 1024 on a GPU."""


@dataclass(frozen=True)
class Bounds:
    """What passes. See docs/completep.md for why a deeper model may shrink more than a wider one."""

    growth: float
    """Largest slope of anything, logits included, at any step after the first."""
    shrink: float
    """Largest negative slope of embedding, attention, feed-forward and block at the last step."""


BOUNDS = {"width": Bounds(growth=0.1, shrink=0.1), "depth": Bounds(growth=0.1, shrink=0.3)}
DEFAULT_LR = {"width": 2e-3, "depth": 1e-3}
DEFAULT_SIZES = {"width": [128, 256, 512, 1024], "depth": [2, 4, 8, 16]}


@dataclass(frozen=True)
class Activations:
    """Mean |activation|, averaged over seeds."""

    axis: str
    """"width" or "depth"."""
    sizes: list[int]
    values: np.ndarray[Any, np.dtype[np.float64]]
    """[kind, step, size]; step 0 is the initialised model."""

    def slopes(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Least-squares slope of log value against log size: [kind, step]."""
        x = np.log(self.sizes) - np.log(self.sizes).mean()
        return (np.log(self.values) * x).sum(axis=-1) / (x**2).sum()


@dataclass(frozen=True)
class Finding:
    """One slope out of bounds."""

    kind: str
    step: int
    slope: float
    bound: float

    def __str__(self) -> str:
        return f"{self.kind} at step {self.step}: slope {self.slope:+.2f}, bound {self.bound:+.2f}"


def judge(activations: Activations) -> list[Finding]:
    """What is out of bounds; an empty list is a pass. A run that diverged to inf or nan is out of bounds."""
    bounds, slopes = BOUNDS[activations.axis], np.nan_to_num(activations.slopes(), nan=np.inf)
    last = slopes.shape[1] - 1
    findings = []
    for row, kind in zip(slopes, KINDS, strict=True):
        worst = 1 + int(row[1:].argmax())
        if row[worst] > bounds.growth:
            findings.append(Finding(kind, worst, float(row[worst]), bounds.growth))
        elif kind != "logits" and row[last] < -bounds.shrink:
            findings.append(Finding(kind, last, float(row[last]), -bounds.shrink))
    return findings


def check(
    runs: dict[int, Callable[[int], tuple[Any, Any]]],
    tokens: Tensor,
    lr: float,
    seeds: int,
    steps: int = 10,
    device: str = "cpu",
) -> Iterator[tuple[int, int, list[dict[str, float]]]]:
    """Train each size with each seed, yielding (size, seed, mean |activation| by kind for steps 0..steps).

    Args:
        runs: size -> seed -> (model class, model args).
        tokens: text to train on, [n].
        lr: peak learning rate of the base size, constant over the run.
    """
    for size, make in runs.items():
        for seed in range(seeds):
            model_cls, args = make(seed)
            yield size, seed, trace(build(model_cls, args, seed, device), tokens, lr, seed, steps, device)


def trace(
    model: torch.nn.Module, tokens: Tensor, lr: float, seed: int, steps: int, device: str
) -> list[dict[str, float]]:
    """Mean |activation| by kind before each of `steps` AdamW steps and after the last."""
    hyper = Hyper(lr=lr)
    optimizer, stream, record = adamw(model, hyper), batches(tokens, BATCH, SEQ_LEN, seed), []
    for step in range(steps + 1):
        with measured(model) as activations:
            loss = loss_of(model, next(stream), device)
        record.append(activations)
        if step < steps:
            train_step(model, optimizer, loss, hyper.max_norm)
    return record


def collect(axis: str, traces: list[tuple[int, int, list[dict[str, float]]]]) -> Activations:
    """Average the traces over seeds."""
    sizes = sorted({size for size, _, _ in traces})
    by_size = [[record for size, _, record in traces if size == wanted] for wanted in sizes]
    values = np.array(
        [
            [[np.mean([record[step][kind] for record in records]) for records in by_size]
             for step in range(len(traces[0][2]))]
            for kind in KINDS
        ]
    )  # fmt: skip
    return Activations(axis, sizes, values)
