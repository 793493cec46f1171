"""`mosaic-photon train`: a job in this process; of several, torchrun starts `mosaic_photon.train_with_mosaic`."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("job", metavar="JOB.toml", help="job config")
    add("data", metavar="DATA.toml", help="data config, TOML or llm-foundry's YAML")
    flags = "fields of the job, after `--`: they win over the job config; `-- --help` lists all"
    add("flags", nargs="*", default=[], metavar="-- --TABLE.FIELD=VALUE", help=flags)


def run(args: argparse.Namespace) -> int:
    """The exit code of the job."""
    from mosaic_photon.train_with_mosaic import main

    return main(["--config", args.job, "--mosaic-config", args.data, "--", *args.flags])
