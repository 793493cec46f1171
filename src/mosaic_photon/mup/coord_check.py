"""Coordinate check: do activations keep their size as the model grows?

Protocol of CompleteP's reference (Dey et al. 2025): train the model for 10 steps at each width or depth and follow
mean |activation|. Judged is the slope of log mean |activation| against log size, by least squares, averaged over the
second half of the steps, and its interval over seeds.

In theory an activation goes with size to a power that the parametrization's table gives: 0 in muP and CompleteP, and
multiples of 1/2 elsewhere, as the table's entries are. A slope is out of bounds where all of its interval is nearer to
another such power than to 0: beyond 1/4. Over depth it may also fall by what L blocks, the Euler steps of a
differential equation, are off by, O(1/L): up to half a power at the depths where one tunes, so the bound is 1/2 there.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mosaic_photon.mup.proxy import KINDS, AdamWSettings, batches, loss_of, measured, train_step

BATCH, SEQ_LEN = 4, 128
"""Sequences and tokens of each a step: small, for two CPU cores; the reference uses 8 x 1024 on a GPU."""


@dataclass(frozen=True)
class Bounds:
    """What passes."""

    growth: float
    """Largest slope of anything, logits included."""
    shrink: float
    """Largest negative slope of embedding, attention, feed-forward and block; logits may shrink."""


BOUNDS = {"width": Bounds(growth=0.25, shrink=0.25), "depth": Bounds(growth=0.25, shrink=0.5)}
DEFAULT_LR = {"width": 2e-3, "depth": 1e-3}
"""At width 128."""
DEFAULT_DEPTHS = [2, 4, 8, 16]
MOST_SEEDS, MOST_RUN = 99, 12
"""How many are counted when it is asked how many would tell, and how many are run before it is left untold."""
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)
"""Of Student's t with 1, 2, ... degrees of freedom: 95 % lie within plus or minus this."""


@dataclass(frozen=True)
class Activations:
    """Mean |activation| of each run."""

    axis: str
    """"width" or "depth"."""
    sizes: list[int]
    runs: NDArray[np.float64]
    """[seed, kind, step, size]; step 0 is the initialised model."""

    @property
    def values(self) -> NDArray[np.float64]:
        """Averaged over seeds: [kind, step, size]."""
        return self.runs.mean(axis=0)

    def slopes(self) -> NDArray[np.float64]:
        """Least-squares slope of log value against log size for each seed: [seed, kind, step]."""
        x = np.log(self.sizes) - np.log(self.sizes).mean()
        with np.errstate(divide="ignore", invalid="ignore"):  # a run that diverged
            return (np.log(self.runs) * x).sum(axis=-1) / (x**2).sum()

    def late_slopes(self) -> NDArray[np.float64]:
        """Averaged over the second half of the steps: [seed, kind]. A run that diverged to inf or nan has grown."""
        slopes = self.slopes()
        late = slopes[:, :, (slopes.shape[2] + 1) // 2 :].mean(axis=2)
        return np.nan_to_num(late, nan=np.inf, posinf=np.inf, neginf=-np.inf)


@dataclass(frozen=True)
class ConfidenceInterval:
    """Where a slope lies, by all seeds: 95 % confidence."""

    low: float
    high: float

    @classmethod
    def of(cls, samples: NDArray[np.float64]) -> "ConfidenceInterval":
        """Of the mean of samples [n]; unbounded with one alone, or where some but not all have diverged."""
        if np.isposinf(samples).all():
            return cls(math.inf, math.inf)
        if len(samples) < 2 or not np.isfinite(samples).all():
            return cls(-math.inf, math.inf)
        half = _half_width(float(samples.std(ddof=1)), len(samples))
        return cls(float(samples.mean()) - half, float(samples.mean()) + half)


@dataclass(frozen=True)
class SlopeFinding:
    """A slope out of bounds, or one of which the seeds cannot tell."""

    kind: str
    interval: ConfidenceInterval
    bound: float
    seeds_needed: int | None
    """With how many the interval would lie on one side of the bound; None: it does."""

    def __str__(self) -> str:
        where = f"{self.kind}: slope between {self.interval.low:+.2f} and {self.interval.high:+.2f}"
        return f"{where}, bound {self.bound:+.2f}"


@dataclass(frozen=True)
class Verdict:
    """PASS: all slopes within their bounds. FAIL: one wholly beyond. UNDECIDED: neither, with these seeds."""

    word: str
    findings: list[SlopeFinding]
    seeds_needed: int | None = None
    """How many would tell, if the slopes stay about what they are; 100 stands for more than 99."""

    @property
    def exit_code(self) -> int:
        return {"PASS": 0, "FAIL": 1, "UNDECIDED": 3}[self.word]

    def __str__(self) -> str:
        if self.seeds_needed is not None:
            number = f"more than {MOST_SEEDS}" if self.seeds_needed > MOST_SEEDS else f"about {self.seeds_needed}"
            return f"UNDECIDED: too few seeds, {number} would do (--seeds); " + "; ".join(map(str, self.findings))
        return self.word if not self.findings else f"{self.word}: " + "; ".join(map(str, self.findings))


def judge(activations: Activations) -> Verdict:
    """The verdict on all kinds of layers."""
    bounds = BOUNDS[activations.axis]
    findings: list[SlopeFinding] = []
    for row, kind in zip(activations.late_slopes().T, KINDS, strict=True):
        sides = [bounds.growth] if kind == "logits" else [bounds.growth, -bounds.shrink]
        findings += [found for bound in sides if (found := _beyond(kind, row, bound)) is not None]
    failed = [finding for finding in findings if finding.seeds_needed is None]
    if failed:
        return Verdict("FAIL", failed)
    needed = [finding.seeds_needed for finding in findings if finding.seeds_needed is not None]
    return Verdict("UNDECIDED", findings, max(needed)) if needed else Verdict("PASS", [])


def _beyond(kind: str, samples: NDArray[np.float64], bound: float) -> SlopeFinding | None:
    """What there is to say of a slope's samples [seed] and one bound; None: it is within."""
    interval = ConfidenceInterval.of(samples)
    inner, outer = (interval.low, interval.high) if bound > 0 else (-interval.high, -interval.low)
    if outer <= abs(bound):
        return None
    return SlopeFinding(kind, interval, bound, None if inner > abs(bound) else seeds_needed(samples, bound))


def seeds_needed(samples: NDArray[np.float64], bound: float) -> int:
    """The smallest number with which the interval of such samples [n] would not reach the bound; at least n + 1."""
    if len(samples) < 2 or not np.isfinite(samples).all():
        return max(3, 2 * len(samples))
    deviation, distance = float(samples.std(ddof=1)), abs(float(samples.mean()) - bound)
    enough = (n for n in range(len(samples) + 1, MOST_SEEDS + 1) if _half_width(deviation, n) < distance)
    return next(enough, MOST_SEEDS + 1)


def _half_width(deviation: float, n: int) -> float:
    return (STUDENT[n - 2] if n - 2 < len(STUDENT) else 2.10) * deviation / math.sqrt(n)


def more_seeds(verdict: Verdict, done: int) -> range:
    """The seeds to run next: as many as the verdict asks for, at most MOST_RUN in all; none where it is told."""
    return range(done, min(verdict.seeds_needed or 0, MOST_RUN))


def default_lr(axis: str, mup: Any) -> float:
    """A learning rate that the base size of the job's `[mup]` can train with: a wider model needs a lower one.

    Hidden layers of width w get it times base_width / w, so that at every base size those of one width get the same.
    Where `[mup]` is not enabled it is the same rate, so that the two can be compared.
    """
    return DEFAULT_LR[axis] * min(1.0, 128 / (mup.base_width or 128))


def default_widths(step: int) -> list[int]:
    """128 256 512 1024 where they are multiples of `step`; else doublings of its first multiple above 128.

    They go up to 1024, and span a factor of 4 at least.
    """
    first = math.ceil(128 / step) * step
    return [first * 2**n for n in range(4) if n < 3 or first * 2**n <= 1024]


Trace = tuple[int, int, list[dict[str, float]]]
"""Size, seed, and mean |activation| by kind for steps 0, 1, ...."""


def check(
    models: dict[int, Callable[[int], nn.Module]],
    tokens: Tensor,
    optimizer: Callable[[nn.Module], Any],
    seeds: Iterable[int],
    steps: int = 10,
    device: str = "cpu",
) -> Iterator[Trace]:
    """Train each size with each seed.

    Args:
        models: size -> seed -> the model on `device`, initialised.
        tokens: text to train on, [n].
        optimizer: of a model, with the peak learning rate of the base size, constant over the run.
    """
    for size, make in models.items():
        for seed in seeds:
            model = make(seed)
            yield size, seed, trace(model, optimizer(model), batches(tokens, BATCH, SEQ_LEN, seed), steps, device)


def trace(
    model: nn.Module, optimizer: Any, stream: Iterator[tuple[Tensor, Tensor]], steps: int, device: str
) -> list[dict[str, float]]:
    """Mean |activation| by kind before each of `steps` optimizer steps and after the last."""
    record = []
    for step in range(steps + 1):
        with measured(model) as activations:
            loss = loss_of(model, next(stream), device)
        record.append(activations)
        if step < steps:
            train_step(model, optimizer, loss, AdamWSettings.max_norm)
    return record


def collect(axis: str, traces: list[Trace]) -> Activations:
    """Put the traces of all sizes and seeds into one array."""
    sizes, seeds = sorted({size for size, _, _ in traces}), sorted({seed for _, seed, _ in traces})
    records = {(size, seed): record for size, seed, record in traces}
    steps = range(len(traces[0][2]))
    runs = [
        [[[records[size, seed][step][kind] for size in sizes] for step in steps] for kind in KINDS] for seed in seeds
    ]
    return Activations(axis, sizes, np.array(runs))
