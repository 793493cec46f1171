"""The two rates that figures are held against: bf16 matrix products and copies within device memory."""

from __future__ import annotations

import torch

from gpu.device import seconds
from gpu.rows import Options, Rows

MATMUL, COPY = "bf16 matrix products", "copy, bytes read and written"


def run(options: Options, rows: Rows) -> None:
    size = options.pick(8192, 256)
    a, b = (torch.randn(size, size, device=options.device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    took = seconds(lambda: torch.mm(a, b, out=out), options.device, repeats=20, warm_up=5)
    rows.figure(MATMUL, 2 * size**3 / took / 1e12, "TFLOP/s")
    source = torch.randn(options.pick(2**30, 2**16), device=options.device)  # 4 GiB: far beyond the L2 cache
    target = torch.empty_like(source)
    took = seconds(lambda: target.copy_(source), options.device, repeats=10)
    rows.figure(COPY, 2 * source.nbytes / took / 1e9, "GB/s")
    if options.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        rows.fact("card", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, driver CUDA {torch.version.cuda}")
