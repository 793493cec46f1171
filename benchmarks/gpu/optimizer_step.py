"""Time of one optimizer step on the parameters of MPT 125m: QHADOPT beside torch's AdamW, and beside the bandwidth."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from bench_optimizer import BYTES_PER_ELEMENT, parameters
from gpu import ceilings
from gpu.device import once
from gpu.rows import Options, Rows, ceiling
from mosaic_photon.optimizers import QHADOPT


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
        pairs = [
            (once(adamw.step, options.device), once(ours.step, options.device)) for _ in range(options.pick(15, 2))
        ]
        theirs, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows.figure(f"AdamW {form}", theirs * 1e3, "ms")
        rows.figure(f"QHADOPT {form}", mine * 1e3, "ms")
        rows.figure(f"QHADOPT {form} / AdamW {form}", mine / theirs, "x", "<= 1.1" if form == "fused" else "")
        if bandwidth := ceiling(options.out, ceilings.COPY):
            share = count * BYTES_PER_ELEMENT / mine / 1e9 / bandwidth
            rows.figure(f"QHADOPT {form}: bandwidth", share, "of a copy's", ">= 0.8" if form == "fused" else "")
