"""What OptimizerMonitor costs, ours against Composer's, both in Composer's Trainer on the same steps.

    python benchmarks/bench_monitor.py [--repeats 5] [--steps 21] [--layers 4] [--width 256]

llm-foundry's MPT, DecoupledAdamW, fp32, one CPU thread. Configurations run in turn, `repeats` times. The cost is the
time spent inside the monitor's events (on a CPU nothing is left running when they return), per step; medians are given.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from composer import Callback, Event, Logger, State, Trainer
from composer.callbacks import OptimizerMonitor as ComposersMonitor
from composer.optim import DecoupledAdamW
from llmfoundry.models import ComposerMPTCausalLM
from torch.utils.data import DataLoader

from mosaic_photon.callbacks import OptimizerMonitor

WARM_UP = 1
"""Steps not counted: first allocations."""

Measured = tuple[float, float]
"""Seconds per step: of the whole step without the monitor, and inside the monitor."""


class Timed(Callback):
    """Runs a callback and measures it."""

    def __init__(self, inner: Callback) -> None:
        self.inner, self.inside, self.began = inner, 0.0, 0.0

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Pass the event on, and add up the time."""
        before = time.perf_counter()
        if event is Event.BATCH_START and state.timestamp.batch == WARM_UP:
            self.inside, self.began = 0.0, before
        self.inner.run_event(event, state, logger)
        self.inside += time.perf_counter() - before

    def seconds(self, steps: int) -> Measured:
        """Per step, from the end of the warm-up until now."""
        counted = steps - WARM_UP
        return (time.perf_counter() - self.began - self.inside) / counted, self.inside / counted


def build_model(args: argparse.Namespace) -> ComposerMPTCausalLM:
    """llm-foundry's MPT with fixed weights."""
    torch.manual_seed(0)
    return ComposerMPTCausalLM(
        d_model=args.width,
        n_heads=4,
        n_layers=args.layers,
        expansion_ratio=4,
        max_seq_len=args.seq_len,
        vocab_size=2048,
        attn_config={"attn_impl": "torch"},
        init_device="cpu",
        loss_fn="torch_crossentropy",
    )


def measure(monitor: Callback, args: argparse.Namespace) -> Measured:
    """Train `args.steps` steps in a fresh Trainer."""
    tokens = torch.randint(0, 2048, (args.batch, args.seq_len), generator=torch.Generator().manual_seed(0))
    samples = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in tokens]
    model, timed = build_model(args), Timed(monitor)
    trainer = Trainer(
        model=model,
        optimizers=DecoupledAdamW(model.parameters(), lr=1e-4, weight_decay=0.0),
        train_dataloader=DataLoader(samples * args.steps, batch_size=args.batch),
        max_duration=f"{args.steps}ba",
        callbacks=timed,
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    seconds = timed.seconds(args.steps)
    trainer.close()
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"repeats": 5, "steps": WARM_UP + 20, "layers": 4, "width": 256, "batch": 4, "seq-len": 128}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    monitors: dict[str, Callable[[], Callback]] = {
        "Composer's, every batch": lambda: ComposersMonitor(batch_log_interval=1),
        "ours, every batch": lambda: OptimizerMonitor(interval=1),
        "ours, every batch, gradients only": lambda: OptimizerMonitor(log_optimizer_metrics=False, interval=1),
        "ours, every 10 batches": lambda: OptimizerMonitor(interval=10),
    }
    measured: dict[str, list[Measured]] = {name: [] for name in monitors}
    for _ in range(args.repeats):
        for name, monitor in monitors.items():
            measured[name].append(measure(monitor(), args))
    counts = [parameter.numel() for parameter in build_model(args).parameters()]
    print(f"MPT, {args.layers} layers of width {args.width}: {len(counts)} tensors, {sum(counts):,} parameters;")
    print(f"{args.batch} x {args.seq_len} tokens a step; medians of {args.repeats}.\n")
    print("| | step without, ms | monitor, ms per step | % of step |\n|---|---|---|---|")
    costs: dict[str, float] = {}
    for name, pairs in measured.items():
        step, costs[name] = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {name} | {step * 1e3:.2f} | {costs[name] * 1e3:.3f} | {100 * costs[name] / step:.2f} |")
    ratio = costs["ours, every batch"] / costs["Composer's, every batch"]
    print(f"\nours / Composer's, every batch: {ratio:.3f}")


if __name__ == "__main__":
    main()
