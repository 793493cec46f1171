"""`mosaic-photon prepare`: turn text into MDS shards of token arrays, with train and val splits."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.files import display
from mosaic_photon.signals import Stopped, stop_signals
from mosaic_photon.stores import is_url, open_store

if TYPE_CHECKING:
    from mosaic_photon.prepare.run import Work
    from mosaic_photon.prepare.sources import TextSource

SHOWN_PATHS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="files, folders and patterns ('corpus/**/*.txt'), in stores too (s3://, gs://, az://, hf://): text, "
        ".jsonl (each also .gz, .zst, .bz2 or .xz), .parquet, .arrow, a folder from Dataset.save_to_disk. None: the "
        "Python standard library's source",
    )
    add("--out", required=True, help="folder, or address, to write; holds train/, val/ and prepare.json")
    add("--tokenizer", required=True, help="local folder with tokenizer.json")
    seq_len = "targets per sample; a sample holds one token more (default 2048)"
    add("--seq-len", type=int, default=2048, help=seq_len)
    add("--val", type=float, default=0.02, help="share of documents for the val split; 0: none (default 0.02)")
    add("--text-key", default="text", help="field or column that holds the text (default text)")
    add("--bos-text", help="token before each document; '' for none (default: the tokenizer's bos)")
    add("--eos-text", help="token after each document; '' for none (default: the tokenizer's eos)")
    special = "what the text of a special token in a document becomes (default: the token, as in llm-foundry)"
    add("--special-text", choices=("token", "text"), default="token", help=special)
    add("--separate", action="store_true", help="a document a sample, filled up with the tokenizer's pad token")
    bad_lines = "at a line or row without text: stop, or leave it out, count and list it (default stop)"
    add("--bad-lines", choices=("stop", "skip"), default="stop", help=bad_lines)
    add("--compression", help="zstd, gz, br, bz2 or snappy, with a level: zstd:7 (default: none)")
    add("--hashes", default="xxh64", metavar="A,B", help="hashes of each shard in the index (default xxh64)")
    add("--shard-mib", type=int, default=64, help="size of a shard before compression, in MiB (default 64)")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one per core)")
    ray = "do the work on a cluster of Ray: its address, auto for the one that this machine belongs to, or local"
    add("--ray", metavar="ADDRESS", help=ray)
    add("--overwrite", action="store_true", help="replace a folder that was prepared with other options or sources")


def run(args: argparse.Namespace) -> int:
    from mosaic_photon.prepare.run import prepare

    start = time.monotonic()
    try:
        with stop_signals():
            work = check(args)
            record = prepare(work)
    except Stopped as stopped:
        print("\nstopped. What is finished is kept; the same command goes on from there.")
        return 128 + int(stopped.args[0])
    if record is None:
        print(f"{display(work.out)} is already prepared")
        return 0
    for line in summary(record, work.out):
        print(line)
    print(f"done in {time.monotonic() - start:.1f} s")
    return 0


def summary(record: dict[str, Any], out: str) -> Iterator[str]:
    """What was made of each split, and what was not taken as it is."""
    from mosaic_photon.prepare.record import BAD_LINES

    for split, part in record["splits"].items():
        yield (
            f"{display(f'{out}/{split}')}: {part['documents']:,} documents, {part['samples']:,} samples, "
            f"{part['tokens']:,} tokens, {part['shards']} shards, {part['bytes'] / 2**20:.1f} MiB"
        )
        if record["separate"] and part["samples"] > part["documents"]:
            more = part["samples"] - part["documents"]
            yield f"note: documents longer than a sample go on in {more:,} samples after their first"
    if count := record["bad_lines_left_out"]:
        yield f"left out: {count:,} lines or rows without text, listed in {display(f'{out}/{BAD_LINES}')}"
    if count := record["empty_documents"]:
        yield f"left out: {count:,} empty documents"
    if count := record["special_texts"]:
        became = "tokens" if record["special_text"] == "token" else "plain text"
        yield f"note: {count:,} times the text of a special token in a document became {became} (--special-text)"


def check(args: argparse.Namespace) -> Work:
    """The call as checked work. Raises ConfigError for what cannot be done."""
    from mosaic_photon.prepare.listing import LeftOut
    from mosaic_photon.prepare.record import Options, make_record
    from mosaic_photon.prepare.run import Work
    from mosaic_photon.prepare.sources import find_sources, stdlib_files
    from mosaic_photon.prepare.tokenization import Tokenization, find_tokenizer, load_tokenizer, token_id
    from mosaic_photon.tokenizers import notes_on

    _check_numbers(args)
    hashes = sorted({name for name in args.hashes.split(",") if name})
    _check_codecs(args.compression, hashes)
    file, special = find_tokenizer(args.tokenizer)
    bos, eos = _around_documents(args.bos_text, args.eos_text, special)
    tokenizer = load_tokenizer(file)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    made: dict[str, Any] = {"tokenizer": digest, "bos": bos, "eos": eos, "hashes": hashes}
    given = {field.name: getattr(args, field.name) for field in fields(Options) if field.name not in made}
    options = Options(**made, **given)
    around = token_id(tokenizer, bos, "--bos-text"), token_id(tokenizer, eos, "--eos-text")
    how = Tokenization(options, file, *around, _pad_id(tokenizer, special) if args.separate else None)
    for note in notes_on({**special, "bos_token": bos, "eos_token": eos}):
        print(f"note: {note}")
    out, left_out = _out(args.out), LeftOut(list)
    sources = find_sources(args.sources or stdlib_files(), out, left_out)
    for reason, paths in left_out.items():
        more = f" and {len(paths) - SHOWN_PATHS:,} more" if len(paths) > SHOWN_PATHS else ""
        print(f"left out ({reason}): {', '.join(display(path) for path in paths[:SHOWN_PATHS])}{more}")
    record, cuttable = make_record(options, sources), not args.separate and _may_cut(sources, file, tokenizer)
    return Work(sources, how, record, out, args.workers, args.overwrite, cuttable, args.ray)


def _out(given: str) -> str:
    """The absolute path, or the address, of the folder to write."""
    from mosaic_photon.prepare.objects import root

    if not is_url(given):
        return os.path.realpath(os.path.expanduser(given))
    out = given.rstrip("/")
    open_store(out)
    if out == root(out):
        raise ConfigError(f"--out {given}: name a folder in it, beside which the unfinished work can lie")
    return out


def _may_cut(sources: list[TextSource], file: str, tokenizer: Any) -> bool:
    """Whether large text files may be tokenized in parts; a line says so of those that may not."""
    from mosaic_photon.prepare.cuts import are_harmless
    from mosaic_photon.prepare.sources import PIECE_BYTES

    large = [source.path for source in sources if source.kind == "text" and (source.size > PIECE_BYTES or source.codec)]
    if not large or are_harmless(file, tokenizer):
        return True
    print(
        f"note: {len(large):,} text files, compressed or above {PIECE_BYTES >> 20} MiB ({display(large[0])}, ...), are"
        " tokenized whole, each by one worker: parts would give this tokenizer other tokens"
    )
    return False


def _pad_id(tokenizer: Any, special: dict[str, str]) -> int:
    from mosaic_photon.prepare.tokenization import token_id

    pad = token_id(tokenizer, special.get("pad_token"), "pad_token")
    if pad is None:
        raise ConfigError(
            "--separate fills samples up with the tokenizer's pad token, and it has none: add pad_token to its "
            "tokenizer_config.json"
        )
    return pad


def _around_documents(bos: str | None, eos: str | None, special: dict[str, str]) -> tuple[str, str]:
    """Text of the tokens before and after each document; a token that the tokenizer has for both comes once."""
    bos_text = special.get("bos_token", "") if bos is None else bos
    eos_text = special.get("eos_token", "") if eos is None else eos
    if bos_text == eos_text and bos is None:
        bos_text = ""
    elif bos_text == eos_text and eos is None:
        eos_text = ""
    return bos_text, eos_text


def _check_numbers(args: argparse.Namespace) -> None:
    for option, right in (("seq_len", args.seq_len >= 1), ("workers", args.workers >= 1)):
        if not right:
            raise ConfigError(f"--{option.replace('_', '-')} is {getattr(args, option)}, must be at least 1")
    if not 0 <= args.val < 1:
        raise ConfigError(f"--val is {args.val}: a share of the documents, from 0 to below 1")
    if args.ray and importlib.util.find_spec("ray") is None:
        raise ConfigError("--ray needs Ray, which is not installed: pip install 'mosaic-photon[ray]'")
    if not 1 <= args.shard_mib <= 2048:
        raise ConfigError(f"--shard-mib is {args.shard_mib}, must be 1 to 2048 (offsets in a shard are 32 bits)")


def _check_codecs(compression: str | None, hashes: list[str]) -> None:
    from mosaic_photon.prepare.shards import compression as known
    from mosaic_photon.prepare.shards import hashing

    if compression is not None and compression not in known.get_compressions():
        raise ConfigError(
            f"--compression {compression!r} is not known.{nearest(compression, known.get_compressions())}"
        )
    for name in hashes:
        if name not in hashing.get_hashes():
            raise ConfigError(f"--hashes {name!r} is not known.{nearest(name, hashing.get_hashes())}")
