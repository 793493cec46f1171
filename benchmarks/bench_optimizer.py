"""Time of one optimizer step: QHADOPT beside torch.optim.AdamW, on the parameters of llm-foundry's 125m MPT.

    python benchmarks/bench_optimizer.py [--device cpu|cuda] [--rounds 7] [--layers 12]

Pairs run in turns (A, B, A, B, ...) in one process; the medians and their ratio are printed, and on a GPU the share of
the bytes-moved limit: read p, g, m, v, write p, m, v.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mosaic_photon.optimizers import QHADOPT

D_MODEL, VOCAB, EXPANSION = 768, 50368, 4
BYTES_PER_ELEMENT = 7 * 4


def parameters(layers: int, device: str) -> list[torch.nn.Parameter]:
    """The shapes of MPT-125m without biases, tied embedding, alibi; fp32, each with a gradient."""
    block = [(D_MODEL,), (3 * D_MODEL, D_MODEL), (D_MODEL, D_MODEL), (D_MODEL,)]
    block += [(EXPANSION * D_MODEL, D_MODEL), (D_MODEL, EXPANSION * D_MODEL)]
    shapes: list[tuple[int, ...]] = [(VOCAB, D_MODEL), *(block * layers), (D_MODEL,)]
    params = [torch.nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p) * 0.01
    return params


def seconds(step: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args()
    torch.manual_seed(0)

    params = parameters(args.layers, args.device)
    count = sum(p.numel() for p in params)
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {count / 1e6:.1f}M parameters")
    print(f"{'form':8} {'AdamW':>10} {'QHADOPT':>10} {'ratio':>7} {'spread of ratio':>17} {'GB/s':>7}")
    for form in ("foreach", "fused"):
        flag: dict[str, Any] = {form: True}
        adamw = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.1, **flag)
        ours = QHADOPT(params, lr=1e-4, weight_decay=1e-5, decouple=True, **flag)
        for _ in range(3):  # state, call 0 and compilation
            adamw.step()
            ours.step()
        pairs = [(seconds(adamw.step, args.device), seconds(ours.step, args.device)) for _ in range(args.rounds)]
        a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(mine / peer for peer, mine in pairs)
        rate = count * BYTES_PER_ELEMENT / b / 1e9
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"{form:8} {a * 1e3:8.1f}ms {b * 1e3:8.1f}ms {b / a:7.2f} {spread:>17} {rate:7.1f}")


if __name__ == "__main__":
    main()
