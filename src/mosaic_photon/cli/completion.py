"""`mosaic-photon completion`: a script by which a shell completes commands, options, files and a job's fields."""

from __future__ import annotations

import argparse

FILES = ("JOB.toml", "DATA.toml", "DATA", "FILE", "SOURCE", "PATH")
FOLDERS = ("DIR", "CHECKPOINT", "CHECKPOINT_OR_EXPORT", "OUT", "HF_FOLDER", "RUN")
"""By their metavars; `--out` and `--tokenizer` are folders, too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="for which shell; docs/start.md says where to")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from mosaic_photon.cli import COMMANDS, commands_of, parser_of
    from mosaic_photon.compat.shtab_rest import complete_all

    parser = parser_of(COMMANDS)
    for command in commands_of(parser).values():
        for action in command._actions:
            _complete(action)
    script = shtab.complete(parser, args.shell)
    print(complete_all(script) if args.shell == "zsh" else script)
    return 0


def _complete(action: argparse.Action) -> None:
    """Say what completes an argument, beside its choices."""
    import shtab

    from mosaic_photon.job.flags import names_of
    from mosaic_photon.job.tables import MosaicJobConfig

    if action.dest == "flags":
        action.choices = [f"--{name}" for name in names_of(MosaicJobConfig)]
    elif action.metavar in FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif action.metavar in FOLDERS or action.dest in ("out", "tokenizer"):
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
