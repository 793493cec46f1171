"""`mosaic-photon import`: a model of Hugging Face's, or of llm-foundry's, as a checkpoint that a job begins from."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="HF_FOLDER", help="config.json and safetensors; of an MPT also .bin, or Composer's .pt")
    add("out", metavar="OUT", help="folder to write, which is not there yet")
    add("--job", required=True, metavar="JOB.toml", help="job config that says which model this is")


def run(args: argparse.Namespace) -> int:
    from mosaic_photon.use.bring_in import bring_in, next_step
    from mosaic_photon.use.checkpoint import job_model

    bring_in(job_model(args.job), args.folder, args.out)
    print(next_step(args.out))
    return 0
