"""What a prepared folder was made from, so that a second call knows whether it is the same work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import OWN, display, json_object, read_json
from mosaic_photon.prepare.sources import TextSource
from mosaic_photon.stores import read

VERSION = 2
FILE = "prepare.json"
BAD_LINES = "bad_lines.txt"
REMEDY = "remove the folder, or choose another --out"


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
    special_text: str  # what the text of a special token in a document becomes: token or text
    separate: bool  # a document a sample
    bad_lines: str  # stop or skip

    @property
    def tokens_per_sample(self) -> int:
        """One more than the targets."""
        return self.seq_len + 1

    @property
    def samples_per_shard(self) -> int:
        """With the 4 bytes that say where each is."""
        return max(1, (self.shard_mib << 20) // (4 * self.tokens_per_sample + 4))


def make_record(options: Options, sources: Iterable[TextSource]) -> dict[str, Any]:
    """The record of a piece of work: two are equal where their output would be."""
    digest = hashlib.sha256()
    sources = list(sources)
    for source in sources:
        digest.update(f"{source.path}\0{source.size}\0{source.version}\n".encode("utf-8", "surrogateescape"))
    return {
        "version": VERSION,
        **asdict(options),
        "source_files": len(sources),
        "source_bytes": sum(source.size for source in sources),
        "sources": digest.hexdigest(),
    }


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record left in a folder; None where the folder is not there or empty.

    Raises:
        ConfigError: the folder holds something else, which is not ours to touch, or a malformed record.
    """
    if (folder / FILE).is_file():
        return read_json(folder / FILE, REMEDY)
    # A call that was killed as it wrote its record has left no more than a part of that.
    if folder.exists() and not (folder.is_dir() and all(file.name.startswith(OWN) for file in folder.iterdir())):
        raise ConfigError(
            f"{display(folder)} exists and was not written by prepare: move it away, or choose another --out"
        )
    return None


def parse_record(file: str) -> dict[str, Any]:
    """A record's content. Raises FileNotFoundError, and ConfigError for a malformed one."""
    return json_object(read(file), file, REMEDY)


def record_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """'seq_len is 2048, asked for 1024' for each entry in which two records differ."""
    if before.get("version") != now["version"]:
        return [f"it is of another version of prepare ({before.get('version')!r}, this one's is {now['version']})"]
    names = {
        "sources": "the list of source files, or one of their sizes or times",
        "parts": "how files are parted",
    }
    return [
        f"{names[key]} changed" if key in names else f"{key} is {before.get(key)!r}, asked for {now[key]!r}"
        for key in now
        if before.get(key) != now[key]
    ]
