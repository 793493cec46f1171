"""Time of one optimizer step on the parameters of MPT 125m: QHADOPT beside torch's AdamW, and beside the bandwidth.

Two times: of a step begun on an idle device, the host's work before its first kernel included; and of a step in a queue
of several, as in training, where the host is ahead. The second is what the bandwidth is held against.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from bench_optimizer import BYTES_PER_ELEMENT, parameters
from gpu import ceilings
from gpu.device import once
from gpu.rows import Options, Rows, ceiling
from mosaic_photon.optimizers import QHADOPT

QUEUED = 10


def run(options: Options, rows: Rows) -> None:
    params = parameters(options.pick(12, 1), options.device)
    if options.tiny:
        params = params[1:]  # without the embedding
    count = sum(parameter.numel() for parameter in params)
    for form in ("fused", "foreach"):
        flag: dict[str, Any] = {form: True}
        adamw = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.1, **flag)
        ours = QHADOPT(params, lr=1e-4, weight_decay=1e-5, decouple=True, **flag)
        for _ in range(3):  # state, call 0 and compilation
            adamw.step()
            ours.step()
        for setting, steps in {"": QUEUED, " from idle": 1}.items():
            theirs, mine = medians(adamw.step, ours.step, steps, options)
            rows.figure(f"AdamW {form}{setting}", theirs * 1e3, "ms")
            rows.figure(f"QHADOPT {form}{setting}", mine * 1e3, "ms")
            rows.figure(
                f"QHADOPT {form} / AdamW {form}{setting}", mine / theirs, "x", "<= 1.1" if form == "fused" else ""
            )
            if setting == "" and (bandwidth := ceiling(options.out, ceilings.COPY)):
                share = count * BYTES_PER_ELEMENT / mine / 1e9 / bandwidth
                rows.figure(f"QHADOPT {form}: bandwidth", share, "of a copy's", ">= 0.8" if form == "fused" else "")


def medians(a: Callable[[], object], b: Callable[[], object], steps: int, options: Options) -> tuple[float, float]:
    """Seconds a step of each, in turns."""

    def several(step: Callable[[], object]) -> float:
        return once(lambda: [step() for _ in range(steps)], options.device) / steps

    pairs = [(several(a), several(b)) for _ in range(options.pick(15, 2))]
    theirs, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
    return theirs, mine
