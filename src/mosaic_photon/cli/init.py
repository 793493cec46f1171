"""`mosaic-photon init`: a first job, of a size that this machine can train, on text or on shards that are there."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import OWN, check_path, check_writable, display, made_folder
from mosaic_photon.foundry import needed
from mosaic_photon.places import same_folder
from mosaic_photon.signals import Stopped, stop_signals
from mosaic_photon.stores import is_url

if TYPE_CHECKING:
    from mosaic_photon.init.files import FirstJob
    from mosaic_photon.init.shards import Shards
    from mosaic_photon.init.sizes import Machine, Plan

SHARDS, TOKENIZER = "shards", "tokenizer"
SEQ_LEN = {"cpu": 256, "gpu": 2048}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dir", metavar="DIR", help="folder to write job.toml and data.toml to; absent or empty")
    add("--model", choices=("llama3", "mpt"), default="llama3", help="family of models (default llama3)")
    data = parser.add_mutually_exclusive_group()
    text = "file, folder or pattern as for prepare, which is run (default: the Python standard library's source)"
    data.add_argument("--text", metavar="PATH", help=text)
    data.add_argument("--mds", metavar="PATH", help="folder with MDS shards of tokens, or its address: s3://...")
    tokenizer = "folder with tokenizer.json (default: the one that the shards' prepare.json names, else one of bytes)"
    add("--tokenizer", metavar="DIR", help=tokenizer)


def run(args: argparse.Namespace) -> int:
    """Write the folder, whole or not at all, and say how to train."""
    from mosaic_photon.init.sizes import Machine

    target = _checked(args)
    try:
        with stop_signals(), _written_whole(target) as folder:
            job = _first_job(args, Machine.here(), folder, target)
            job.write(folder)
    except Stopped as stopped:
        print(f"\nstopped; {display(target)} is as it was")
        return 128 + int(stopped.args[0])
    for line in _summary(job, target):
        print(line)
    return 0


def _checked(args: argparse.Namespace) -> Path:
    """The folder to write. Raises ConfigError for what cannot be done, before anything is."""
    from mosaic_photon.prepare.tokenization import find_tokenizer, load_tokenizer

    for option, path in (("DIR", args.dir), ("--tokenizer", args.tokenizer), ("--mds", args.mds)):
        expanded = os.path.expanduser(path or "")
        check_path(option, expanded, address=option == "--mds")
        is_url(expanded)  # or refused
        try:
            expanded.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{option} = {display(path)}: TOML can name no path that is not UTF-8.") from None
    target = Path(os.path.realpath(os.path.expanduser(args.dir)))
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{args.dir} is a file; name a folder that is absent or empty.")
    if target.is_dir() and (there := _files(target)):
        raise ConfigError(
            f"{args.dir} has files ({', '.join(there[:3])}{', ...' * (len(there) > 3)}); nothing is "
            "overwritten: name a folder that is absent or empty."
        )
    check_writable("DIR", str(target))
    if args.model == "mpt" and importlib.util.find_spec("llmfoundry") is None:
        raise ConfigError(f"--model mpt {needed(ModuleNotFoundError(name='llmfoundry'))}")
    if args.tokenizer:
        load_tokenizer(find_tokenizer(args.tokenizer)[0])
    return target


def _files(folder: Path) -> list[str]:
    """What is in a folder; what a killed call left of its work does not count."""
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith(OWN))


@contextlib.contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A folder to write in; what is in it comes into `target` when it is whole, and is removed where it is not."""
    work = target / f"{OWN}init.{os.getpid()}"
    with made_folder(target):
        try:
            work.mkdir()
            yield work
            if there := _files(target):
                raise ConfigError(f"{display(target)} has got files meanwhile ({there[0]}); nothing is overwritten.")
            for file in sorted(work.iterdir(), key=lambda file: file.name == "job.toml"):
                file.rename(target / file.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _first_job(args: argparse.Namespace, machine: Machine, folder: Path, target: Path) -> FirstJob:
    """What the files will say; text is prepared for it in `folder`, which becomes `target`."""
    from mosaic_photon.init.files import FirstJob
    from mosaic_photon.init.shards import look_at, named_tokenizer
    from mosaic_photon.init.sizes import plan
    from mosaic_photon.tokenizers import BYTE_LEVEL

    tokenizer = os.path.abspath(os.path.expanduser(args.tokenizer)) if args.tokenizer else None
    if args.mds:
        shards = look_at(args.mds)
        tokenizer, ids = _tokenizer_of(shards, tokenizer or named_tokenizer(shards), folder, target)
        if shards.largest >= ids:
            raise ConfigError(
                f"--mds {args.mds!r}: its samples hold the token id {shards.largest}, and the tokenizer in {tokenizer}"
                f" has {ids:,} ids: name the one that they were made with, with --tokenizer."
            )
    else:
        tokenizer = tokenizer or str(BYTE_LEVEL)
        shards = _prepare(args.text, tokenizer, SEQ_LEN["gpu" if machine.gpus else "cpu"], folder, target)
        ids = _ids(tokenizer)
    vocabulary = -(-ids // 64) * 64
    seq_len = shards.tokens if shards.tokens % 16 == 0 else shards.tokens - 1
    planned = plan(args.model, machine, vocabulary, seq_len, shards.samples)
    room = shutil.disk_usage(target).free
    return FirstJob(args.model, planned, shards, vocabulary, tokenizer, str(target / "outputs"), room)


def _tokenizer_of(shards: Shards, known: str | None, folder: Path, target: Path) -> tuple[str, int]:
    """The folder of the shards' tokenizer, and its ids; one without text is made where none is known."""
    from mosaic_photon.init.shards import write_stand_in
    from mosaic_photon.tokenizers import BYTE_LEVEL

    if known is not None or shards.largest < _ids(str(BYTE_LEVEL)):
        return known or str(BYTE_LEVEL), _ids(known or str(BYTE_LEVEL))
    ids = write_stand_in(folder / TOKENIZER, shards.largest)
    print(
        f"note: no tokenizer is named: {display(target / TOKENIZER)} stands in, with {ids:,} ids that have no text; the"
        f" largest of the samples that were read is {shards.largest:,}. --tokenizer DIR names the right one"
    )
    return str(target / TOKENIZER), ids


def _ids(tokenizer: str) -> int:
    from mosaic_photon.prepare.tokenization import find_tokenizer, load_tokenizer
    from mosaic_photon.tokenizers import vocabulary_size

    return vocabulary_size(load_tokenizer(find_tokenizer(tokenizer)[0]))


def _prepare(text: str | None, tokenizer: str, seq_len: int, folder: Path, target: Path) -> Shards:
    """Make shards of the text; a split to validate on too, if there is text for one."""
    from mosaic_photon.cli import prepare as command
    from mosaic_photon.init.shards import Shards
    from mosaic_photon.prepare.run import TooLittleError, prepare

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = ["--out", str(folder / SHARDS), "--tokenizer", tokenizer, "--seq-len", str(seq_len)]
    work = command.check(parser.parse_args([*options, "--", *([text] if text else [])]))
    if len(work.sources) == 1 and work.sources[0].kind == "text":
        work = work.without_val()  # one document, which is not split
    try:
        try:
            record = prepare(work)
        except TooLittleError as error:
            if error.split == "train":
                raise
            record = prepare(work.without_val())
    except TooLittleError as error:
        raise ConfigError(
            f"--text {text}: it has {error.tokens} tokens, less than one sample of {error.sample}: give more text."
        ) from None
    assert record is not None, "the folder is new"
    for line in command.summary(record, str(target / SHARDS)):
        print(line)
    splits = record["splits"]
    where, val = {"local": str(target / SHARDS)}, "val" if "val" in splits else None
    return Shards(where, "train", val, splits["train"]["samples"], seq_len + 1, largest=0)


def _summary(job: FirstJob, target: Path) -> Iterator[str]:
    """What was chosen and why, what was written, and the command that trains."""
    plan, shards = job.plan, job.shards
    millions = plan.size.parameters(job.vocabulary) / 1e6
    yield (
        f"{job.model} {plan.size.flavor}, about {millions:,.0f} million parameters, for a machine with {plan.machine}: "
        f"micro-batches of {plan.local_batch} x {plan.seq_len:,} tokens"
    )
    if plan.seq_len < shards.tokens - 1:
        taken = f"of each sample's {shards.tokens:,} tokens the first {plan.seq_len + 1:,} are taken"
        yield f"note: {taken}, as more do not fit this machine"
    yield f"wrote {', '.join(display(file) for file in sorted(target.iterdir()) if not file.name.startswith(OWN))}"
    yield f"train:\n  {_train_command(plan, target)}"


def _train_command(plan: Plan, target: Path) -> str:
    job, data = (shlex.quote(display(target / name)) for name in ("job.toml", "data.toml"))
    if plan.processes == 1:
        return f"{_program('mosaic-photon', 'mosaic_photon.cli')} train {job} {data}"
    torchrun = f"{_program('torchrun', 'torch.distributed.run')} --standalone --nproc_per_node={plan.processes}"
    return f"{torchrun} -m mosaic_photon.train_with_mosaic --config {job} --mosaic-config {data}"


def _program(name: str, module: str) -> str:
    """How to call it here: by its name, if that is this environment's."""
    found, folder = shutil.which(name), os.path.dirname(sys.executable)
    return (
        name if found and same_folder(os.path.dirname(found), folder) else f"{shlex.quote(sys.executable)} -m {module}"
    )
