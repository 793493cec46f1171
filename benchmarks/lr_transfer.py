"""Does the best learning rate stay where it is as the model grows? muP/CompleteP against the standard parametrization.

    python benchmarks/lr_transfer.py [--width-steps 40] [--depth-steps 250] [--widths 64 128 256] [--depths 2 4 16]

Trains the MPT on the text of Python's standard library over a grid of learning rates, a factor of 2 apart, and prints
the optimum per size: the vertex of the parabola through the best rate and its neighbours in log-log. Depth takes
longer runs: until the loss is below that of the token frequencies alone, the blocks have no part in it. Writes
docs/lr_transfer.png and benchmarks/results/lr_transfer.md.
"""

import argparse
import dataclasses
import logging
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from mosaic_photon.cli.coord_check import adamw
from mosaic_photon.models import MPTMuPModelArgs, TitanComposerMPTMuP
from mosaic_photon.models.resized import build, resized
from mosaic_photon.mup.proxy import AdamWSettings, batches, loss_of, train_step
from mosaic_photon.prepare.tokenization import stdlib_tokens

ROOT = Path(__file__).parent.parent
BASE_WIDTH, BASE_DEPTH, SEQ_LEN, BATCH = 64, 2, 64, 8
Curves = dict[int, list[float]]
"""Size -> loss by learning rate."""


def model_args(axis: str, size: int, mup: bool) -> MPTMuPModelArgs:
    # llm-foundry divides the output projections' init by the depth unless told not to; muP's init is fixed.
    init = {"name": "baseline_", "init_std": 0.02} | ({} if mup else {"init_div_is_residual": False})
    base = MPTMuPModelArgs(
        d_model=BASE_WIDTH, n_heads=2, n_layers=BASE_DEPTH, vocab_size=2048, max_seq_len=SEQ_LEN, init_config=init
    )
    args = resized(base, size if axis == "width" else None, size if axis == "depth" else None)
    if not mup:
        return args
    return dataclasses.replace(
        args, mup={"enabled": True, "width": args.d_model / BASE_WIDTH, "depth": args.n_layers / BASE_DEPTH}
    )


def final_loss(args: MPTMuPModelArgs, tokens: torch.Tensor, lr: float, steps: int) -> float:
    """Mean loss of the last tenth of the steps; linear warm-up over the first tenth, then constant."""
    model, hyper = build(TitanComposerMPTMuP, args, 0), AdamWSettings(lr=lr)
    optimizer, stream, losses = adamw(hyper, [], model), batches(tokens, BATCH, SEQ_LEN, 0), []
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (steps / 10)))
    for _ in range(steps):
        loss = loss_of(model, next(stream), "cpu")
        losses.append(loss.item())
        train_step(model, optimizer, loss, hyper.max_norm)
        warmup.step()
    return float(np.mean(losses[-max(1, steps // 10) :]))


def optimum(rates: list[float], losses: list[float]) -> float:
    """Vertex of the parabola through the lowest point and its neighbours, in log2 of the rate."""
    best = int(np.clip(np.nanargmin(losses), 1, len(rates) - 2))
    left, mid, right = losses[best - 1 : best + 2]
    shift = 0.5 * (left - right) / (left - 2 * mid + right)
    return rates[best] * 2.0 ** float(np.clip(shift, -1, 1))


def summary(name: str, axis: str, rates: list[float], curves: Curves) -> list[str]:
    best = {size: optimum(rates, losses) for size, losses in curves.items()}
    spread = max(best.values()) / min(best.values())
    lines = [f"{name}, {axis}: optima span a factor of {spread:.2f}"]
    for size, losses in curves.items():
        points = "  ".join(f"{rate:.1e}:{loss:.3f}" for rate, loss in zip(rates, losses, strict=True))
        lines.append(f"  {axis} {size:4d}  optimum {best[size]:.2e}  {points}")
    return lines


def plot(rates: list[float], results: dict[tuple[str, str], Curves]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(4 * len(results), 3.4), layout="constrained", sharey=True)
    for panel, ((name, axis), curves) in zip(np.atleast_1d(axes), results.items(), strict=True):
        for size, losses in curves.items():
            panel.plot(rates, losses, marker="o", markersize=3, label=f"{axis} {size}")
        panel.set(title=name, xlabel="learning rate of the base size", xscale="log")
        panel.legend(fontsize=7)
    np.atleast_1d(axes)[0].set_ylabel("loss")
    figure.savefig(ROOT / "docs" / "lr_transfer.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width-steps", type=int, default=40)
    parser.add_argument("--depth-steps", type=int, default=250)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 16])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rates = [2.0**-n for n in range(11, 4, -1)]
    start = time.monotonic()
    tokens = torch.tensor(stdlib_tokens(str(ROOT / "tests/assets/tokenizer"), 2_000_000))
    plan = [
        (name, axis, size)
        for axis, sizes in (("width", options.widths), ("depth", options.depths))
        for name in ("muP" if axis == "width" else "CompleteP", "standard")
        for size in sizes
    ]
    results: dict[tuple[str, str], Curves] = {}
    for name, axis, size in track(plan, description="sweep"):
        args = model_args(axis, size, mup=name != "standard")
        steps = options.width_steps if axis == "width" else options.depth_steps
        results.setdefault((name, axis), {})[size] = [final_loss(args, tokens, rate, steps) for rate in rates]
    command = (
        f"python benchmarks/lr_transfer.py --width-steps {options.width_steps} --depth-steps {options.depth_steps}"
    )
    lines = [
        f"{options.width_steps} steps over width, {options.depth_steps} over depth, {BATCH} x {SEQ_LEN} tokens, AdamW,",
        f"base {BASE_WIDTH} x {BASE_DEPTH}, {time.monotonic() - start:.0f} s, torch {torch.__version__}, shared cores, "
        f"CPU only, {time.strftime('%Y-%m-%d')}",
    ]
    for (name, axis), curves in results.items():
        lines += summary(name, axis, rates, curves)
    print("\n".join(lines))
    plot(rates, results)
    content = "\n".join(["# Learning-rate transfer", "", f"`{command}`", "", "```", *lines, "```", ""])
    (ROOT / "benchmarks" / "results" / "lr_transfer.md").write_text(content)


if __name__ == "__main__":
    main()
