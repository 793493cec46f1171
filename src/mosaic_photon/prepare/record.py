"""What a prepared folder was made from, so that a second call knows whether it is the same work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mosaic_photon.prepare.sources import Source

VERSION = 1
FILE = "prepare.json"


@dataclass(frozen=True)
class Options:
    """What decides each byte of the output, beside the sources. The number of workers does not."""

    seq_len: int
    tokenizer: str  # sha256 of tokenizer.json
    bos: str  # text of the token before each document; "": none
    eos: str  # text of the token after each document
    text_key: str
    val: float  # share of the documents that go to val
    compression: str | None
    hashes: list[str]
    shard_mib: int


def make_record(options: Options, sources: Iterable[Source]) -> dict[str, Any]:
    """The record of a piece of work: two are equal where their output would be."""
    digest = hashlib.sha256()
    sources = list(sources)
    for source in sources:
        digest.update(f"{source.path}\0{source.size}\0{source.mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return {
        "version": VERSION,
        **asdict(options),
        "source_files": len(sources),
        "source_bytes": sum(source.size for source in sources),
        "sources": digest.hexdigest(),
    }


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record left in a folder; None where there is none."""
    file = folder / FILE
    return json.loads(file.read_text()) if file.is_file() else None


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """'seq_len is 2048, asked for 1024' for each entry in which two records differ."""
    names = {"sources": "the list of source files, or one of their sizes or times"}
    return [
        f"{names[key]} changed" if key in names else f"{key} is {before.get(key)!r}, asked for {now[key]!r}"
        for key in now
        if before.get(key) != now[key]
    ]
