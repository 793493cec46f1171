"""`mosaic-photon export`: a checkpoint of a run as a folder that transformers loads."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a folder step-N of any layout, or the run's folder of them: the newest",
    )
    add("out", metavar="OUT", help="folder to write, which is not there yet")
    add("--job", required=True, metavar="JOB.toml", help="job config that says which model this is")
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: as the checkpoint has them)")


def run(args: argparse.Namespace) -> int:
    import torch

    from mosaic_photon.use.checkpoint import find_checkpoint, job_model
    from mosaic_photon.use.export import export

    model = job_model(args.job)
    checkpoint = find_checkpoint(model, args.checkpoint)
    export(model, checkpoint, args.out, args.dtype and getattr(torch, args.dtype))
    print(f"{args.out} holds {checkpoint} for transformers")
    return 0
