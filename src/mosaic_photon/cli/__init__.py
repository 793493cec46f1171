"""`mosaic-photon COMMAND`: each command is one module of this package with `add_arguments(parser)` and `run(args)`."""

import argparse
import importlib
import sys

from mosaic_photon.errors import ConfigError

COMMANDS = {
    "init": "write a first job, of a size that this machine can train",
    "train": "train a job in one process",
    "doctor": "check this machine for a job",
    "inspect": "show and verify the data that a data config names",
    "prepare": "turn text into MDS shards of token arrays",
    "schedule": "draw a job's learning rate, momentum and weight decay",
    "coord-check": "check that a parametrization keeps activations the same size over widths or depths",
    "export": "write a checkpoint as a folder that transformers loads",
    "import": "make a checkpoint that a job begins from out of a folder of Hugging Face's",
    "average": "the mean of checkpoints' weights, as a checkpoint of the model alone",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. A ConfigError ends with its message and exit code 1."""
    parser = argparse.ArgumentParser(prog="mosaic-photon", description="Mosaic data for TorchTitan.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    words = sys.argv[1:] if argv is None else argv
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary)
        if name in words[:1]:  # only the command asked for is imported
            module = importlib.import_module(f"mosaic_photon.cli.{name.replace('-', '_')}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    args = parser.parse_args(words)
    try:
        return args.run(args)
    except ConfigError as error:
        print(f"mosaic-photon {args.command}: {error}", file=sys.stderr)
        return 1
