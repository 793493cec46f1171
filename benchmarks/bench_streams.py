"""What `[mosaic] loss_per_stream` costs: its code timed where it stands in a step, beside the step without it.

    python benchmarks/bench_streams.py [--steps 200] [--interval 10] [--layers 4] [--width 256]

llm-foundry's MPT, fp32, one CPU thread, two streams of tokens. Each step takes the loss with and without rows, in turn
first and second; the difference of the medians counts. Prints too how many operations more a micro-batch gives to the
device.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from streaming import MDSWriter
from torch.utils._python_dispatch import TorchDispatchMode
from torchtitan.components.loss import cross_entropy_loss

import mosaic_photon.titan  # noqa: F401  (before TorchTitan)
from bench_monitor import build_model
from mosaic_photon.dataloader import DataSpecDataLoader
from mosaic_photon.dataloader.build import open_loader
from mosaic_photon.dataloader.order.deal import Layout
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.row_losses import cross_entropy_of_each, keeping_rows
from mosaic_photon.train.streams import StreamMeter

VIEWS = ("view", "detach", "alias", "transpose", "expand")


class Operations(TorchDispatchMode):
    """Counts what is given to the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not any(view in str(func) for view in VIEWS)
        return func(*args, **kwargs or {})


def two_streams(folder: str, args: argparse.Namespace) -> DataSpecDataLoader:
    """A loader of random tokens."""
    generator = torch.Generator().manual_seed(0)
    for stream in "ab":
        with MDSWriter(out=f"{folder}/{stream}", columns={"tokens": f"ndarray:int32:{args.seq_len + 1}"}) as shards:
            for row in torch.randint(0, 2048, (args.steps * args.batch, args.seq_len + 1), generator=generator):
                shards.write({"tokens": row.int().numpy()})
    job = MosaicJobConfig()
    streams = {stream: {"local": f"{folder}/{stream}"} for stream in "ab"}
    job.mosaic.dataloader = {"name": "text", "dataset": {"shuffle": True, "streams": streams}}
    job.training.seq_len = args.seq_len
    return open_loader(Layout.of(1, 0, args.batch, args.batch), None, job)


def operations(loss_fn: Callable[..., torch.Tensor]) -> int:
    """Of one call."""
    with Operations() as counted:
        loss_fn(torch.randn(2, 8, 16), torch.ones(2, 8, dtype=torch.int64))
    return counted.count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "steps": 200, "interval": 10, "layers": 4, "width": 256, "batch": 4, "seq-len": 128,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        spent = measure(two_streams(folder, args), args)
    loss, rows, steps = (statistics.median(spent[name]) for name in ("loss", "loss with rows", "step"))
    meter = sum(spent["meter"]) / args.steps
    without = steps - rows - statistics.median(spent["meter"])
    print(
        f"MPT, {args.layers} layers of width {args.width}, {args.batch} x {args.seq_len} tokens; {args.steps} steps.\n"
    )
    print("| | ms per step | % of step |\n|---|---|---|")
    print(f"| step without | {without * 1e3:.2f} | |")
    for name, cost in {"loss with rows": rows - loss, "counts and reports": meter}.items():
        print(f"| {name} | {cost * 1e3:.3f} | {100 * cost / without:.2f} |")
    kept = keeping_rows(cross_entropy_of_each, lambda rows: None)
    print(f"\nmore operations on the device in a micro-batch: {operations(kept) - operations(cross_entropy_loss)}")


def measure(loader: DataSpecDataLoader, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each step's parts."""
    meter, model = StreamMeter(loader), build_model(args).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = {"loss": cross_entropy_loss, "loss with rows": keeping_rows(cross_entropy_of_each, meter.keep_rows)}
    spent: dict[str, list[float]] = {name: [] for name in ("step", "meter", *losses)}
    meter.begin()
    batches = iter(loader)
    for step in range(1, args.steps + 1):
        began = time.perf_counter()
        meter.begin_step()
        in_meter = time.perf_counter() - began
        inputs, labels = next(batches)
        before = time.perf_counter()
        meter.count(labels)
        meter.begin_micro_batch(args.batch)
        in_meter += time.perf_counter() - before
        logits = model(inputs["input"]).logits
        for name in list(losses)[:: 1 if step % 2 else -1]:
            before = time.perf_counter()
            loss = losses[name](logits, labels)
            spent[name].append(time.perf_counter() - before)
        (loss / labels.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = time.perf_counter()
        if step % args.interval == 0:
            meter.report(meter.losses(), meter.labels.astype(float))
        now = time.perf_counter()
        spent["meter"].append(in_meter + now - before)
        spent["step"].append(now - began)
    loader.close()
    return spent


if __name__ == "__main__":
    main()
