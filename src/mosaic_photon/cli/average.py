"""`mosaic-photon average`: the mean of checkpoints' weights, for merging at a plateau's end."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help="checkpoints of one model: folders step-N, of any layout")
    add("--out", required=True, metavar="OUT", help="folder to write, which is not there yet")
    add("--weights", default="equal", metavar="RULE",
        help="equal, or ema:D, which goes from the oldest to the newest and keeps D of the mean at each (default equal)"
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from mosaic_photon.use.average import average, by_age, weights_of

    folders = by_age(args.checkpoints)
    weights = weights_of(args.weights, len(folders))
    average(folders, args.out, weights)
    for folder, weight in zip(folders, weights, strict=True):
        print(f"{weight / sum(weights):7.4f}  {folder}")
    print(f"their mean, the model alone: {args.out} (checkpoint.initial_load_path takes it)")
    return 0
