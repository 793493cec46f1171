"""Timing and comparing on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def wait(device: str) -> None:
    """Until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, repeats: int, warm_up: int = 2) -> float:
    """Median time of a call, each begun on an idle device and waited for."""
    for _ in range(warm_up):
        work()
    return statistics.median(once(work, device) for _ in range(repeats))


def once(work: Callable[[], object], device: str) -> float:
    """Time of one call, begun on an idle device and waited for."""
    wait(device)
    begun = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - begun


def relative(given: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """|given - right| / |right| over all tensors together, in float64 on the CPU; NaN where there is one."""
    pairs = [(a.detach().cpu().double(), b.detach().cpu().double()) for a, b in zip(given, right, strict=True)]
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(b.square().sum()) for _, b in pairs)
    return (difference / size) ** 0.5 if size else float("nan")


def peak_gib(device: str) -> float:
    """Largest memory that tensors have taken since the last reset."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0


def exact_fp32() -> None:
    """Matrix products of float32 in float32, not TF32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
