"""Inside the step: how often it waits for the device, and the kernels that take its time."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu.device import once, wait
from gpu.rows import Options, Rows

PROFILED, KERNELS = 3, 10
EXPECTED_WAITS = 3
"""TorchTitan's own: the count of labels, the inputs and the labels are copied to the device (docs/performance.md)."""


def look(step: Callable[[], None], options: Options, rows: Rows) -> None:
    """Two looks at a trainer that is warm."""
    if options.device == "cuda":
        found = waits(step)
        rows.figure("waits for the device in a step", sum(found.values()), "", f"<= {EXPECTED_WAITS}")
        for place, times in found.items():
            rows.fact("waits at", f"{times} x {place}")
    kernels(step, options, rows)


def waits(step: Callable[[], None]) -> Counter[str]:
    """Places where one step waited for the device, by torch's sync debug mode."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    synchronous = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    return Counter(f"{w.filename.rpartition('site-packages/')[2]}:{w.lineno}" for w in synchronous)


def kernels(step: Callable[[], None], options: Options, rows: Rows) -> None:
    """The KERNELS that take most of a step, and the share of the step in which none ran."""
    on_gpu = options.device == "cuda"

    def several() -> None:
        for _ in range(PROFILED):
            step()

    plain = once(several, options.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        several()
        wait(options.device)
    if on_gpu:
        intervals = [(e.time_range.start, e.time_range.end) for e in profiler.events() if is_kernel(e)]
        rows.figure("share of a step without a kernel", 1 - covered(intervals) / (plain * 1e6), "of the step")
    averages = [event for event in profiler.key_averages() if not event.is_user_annotation]
    spent = sorted(averages, key=lambda event: -own_time(event, on_gpu))[:KERNELS]
    total = sum(own_time(event, on_gpu) for event in averages)
    for event in spent:
        rows.figure(f"kernel {event.key[:80]}", own_time(event, on_gpu) / max(total, 1), "of all kernels' time")


def is_kernel(event: Any) -> bool:
    return event.device_type == DeviceType.CUDA and not event.is_user_annotation


def own_time(event: Any, on_gpu: bool) -> float:
    """Microseconds of the kernel itself."""
    if not on_gpu:
        return event.self_cpu_time_total
    return event.self_device_time_total if event.device_type == DeviceType.CUDA else 0.0


def covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of intervals, in their unit."""
    length, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        length += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return length
