"""Random numbers by their place: the i-th number of a stream, without those before it. Pure arithmetic on tensors.

Additions, multiplications, divisions, roots and shifts only, each rounded as IEEE 754 says: the same bits on every
processor, in every shape and under every release of torch, which log, cos or torch's own generators do not promise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TAIL = 0.02425
"""Probability of each of the normal distribution's tails that has an approximation of its own."""
# Acklam's rational approximation of the normal quantile, relative error below 1.2e-9; highest powers first.
CENTRE_UP = (-3.969683028665376e1, 2.209460984245205e2, -2.759285104469687e2, 1.383577518672690e2,
             -3.066479806614716e1, 2.506628277459239)  # fmt: skip
CENTRE_DOWN = (-5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2, 6.680131188771972e1,
               -1.328068155288572e1, 1.0)  # fmt: skip
TAIL_UP = (-7.784894002430293e-3, -3.223964580411365e-1, -2.400758277161838, -2.549732539343734,
           4.374664141464968, 2.938163982698783)  # fmt: skip
TAIL_DOWN = (7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0)


@dataclass(frozen=True)
class Stream:
    """One of 2^127 streams of 2^64 numbers each: SplitMix64 with a start and an odd step of its own."""

    start: int
    step: int

    @classmethod
    def of(cls, *names: Any) -> Stream:
        """The stream of this name."""
        digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
        return cls(*(int.from_bytes(digest[at : at + 8], "little", signed=True) for at in (0, 8)))

    def uniform(self, places: Tensor) -> Tensor:
        """Numbers in (0, 1) at these places: odd multiples of 2^-53. int64 to float64, of the same shape."""
        bits = places * (self.step | 1)  # int64 wraps around
        bits += self.start
        bits ^= _shifted(bits, 30)
        bits *= -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
        bits ^= _shifted(bits, 27)
        bits *= -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
        bits ^= _shifted(bits, 31)
        return _shifted(bits, 12).double().add_(0.5).mul_(2.0**-52)


def normal_quantile(probability: Tensor) -> Tensor:
    """Where the standard normal distribution reaches a probability in (0, 1); float64."""
    distance = probability - 0.5
    square = distance * distance
    quantile = _polynomial(CENTRE_UP, square).mul_(distance).div_(_polynomial(CENTRE_DOWN, square))
    in_tail = distance.abs() > 0.5 - TAIL
    outside = distance[in_tail]
    root = log(0.5 - outside.abs()).mul_(-2.0).sqrt_()
    tail = _polynomial(TAIL_UP, root).div_(_polynomial(TAIL_DOWN, root))  # of the lower one
    quantile[in_tail] = tail.mul_(-outside.sign())
    return quantile


def log(x: Tensor) -> Tensor:
    """The natural logarithm of positive normal numbers; float64, within 2 units in the last place."""
    mantissa, exponent = torch.frexp(x)  # in [0.5, 1)
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, mantissa * 2.0, mantissa)
    exponent = exponent - small.to(exponent.dtype)
    ratio = (mantissa - 1.0).div_(mantissa + 1.0)
    series = _polynomial([1.0 / n for n in range(23, 0, -2)], ratio * ratio).mul_(ratio).mul_(2.0)
    return series.add_(exponent.double() * math.log(2.0))


def normal_cdf(x: float) -> float:
    """The standard normal distribution's probability below x, to 12 digits: libraries differ in the last."""
    return round((1.0 + math.erf(x / math.sqrt(2.0))) / 2.0, 12)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right as if the integers had no sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Horner's rule, each product rounded before its sum."""
    value = x * coefficients[0]
    for coefficient in coefficients[1:-1]:
        value.add_(coefficient).mul_(x)
    return value.add_(coefficients[-1])
