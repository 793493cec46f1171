"""`mosaic-photon COMMAND`: each command is one module of this package with `add_arguments(parser)` and `run(args)`."""

import argparse
import importlib
import os
import select
import signal
import sys
import warnings
from collections.abc import Iterable

from mosaic_photon.errors import ConfigError
from mosaic_photon.signals import Stopped

COMMANDS = {
    "init": "write a first job, of a size that this machine can train",
    "train": "train a job in one process",
    "doctor": "check this machine for a job",
    "inspect": "show and verify the data that a data config names",
    "prepare": "turn text into MDS shards of token arrays",
    "trace": "which samples a step sees, which steps see a sample or a text; run a step again",
    "schedule": "draw a job's learning rate, momentum and weight decay",
    "coord-check": "check that a parametrization keeps activations the same size over widths or depths",
    "export": "write a checkpoint as a folder that transformers loads",
    "import": "make a checkpoint that a job begins from out of a folder of Hugging Face's",
    "generate": "text from a checkpoint or an exported folder",
    "evaluate": "loss, perplexity and bits per byte of a checkpoint or an exported folder, and lm-eval's tasks",
    "report": "a page and a picture of what runs have trained; of several, a comparison",
    "average": "the mean of checkpoints' weights, as a checkpoint of the model alone",
    "completion": "print a script by which bash, zsh or fish completes what is typed",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. A ConfigError ends with its message and exit code 1, Ctrl-C with 130."""
    words = sys.argv[1:] if argv is None else argv
    parser = parser_of(words[:1])
    ours, flags = split_flags(parser, words)
    args, unknown = parser.parse_known_args(ours)
    if unknown:
        hint = "; the job's flags come behind `--`" if hasattr(args, "flags") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if flags:
        args.flags = flags
    for message in ("pkg_resources is deprecated", "Using a non-tuple sequence"):  # llm-foundry's own
        warnings.filterwarnings("ignore", message)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be flushed
        return 1
    except ConfigError as error:
        print(f"mosaic-photon {args.command}: {error}", file=sys.stderr)
        return 1
    except (Stopped, KeyboardInterrupt) as stopped:
        print(f"\nmosaic-photon {args.command}: stopped", file=sys.stderr)
        return 128 + int(stopped.args[0] if isinstance(stopped, Stopped) else signal.SIGINT)


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone, as `head` does when it has enough."""
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def parser_of(whole: Iterable[str]) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of those in `whole`, which alone are imported."""
    parser = argparse.ArgumentParser(prog="mosaic-photon", description="Mosaic data for TorchTitan.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary)
        if name in whole:
            module = importlib.import_module(f"mosaic_photon.cli.{name.replace('-', '_')}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def split_flags(parser: argparse.ArgumentParser, words: list[str]) -> tuple[list[str], list[str]]:
    """The command line up to `--`, and the job's flags behind it, where the command takes some.

    argparse takes them for the command's own once an option has come between them and the files.
    """
    command = commands_of(parser).get(words[0]) if words else None
    if command is None or "--" not in words or all(action.dest != "flags" for action in command._actions):
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, by name."""
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)
