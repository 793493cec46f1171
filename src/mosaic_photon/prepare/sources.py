"""Where the text is: files, folders, globs and datasets on disk, cut into pieces that workers read alone.

A piece of a text or JSONL file is a range of bytes and holds the lines that start in it, so a large file is
read by many workers. A compressed file, which has no random access, is one piece.
"""

from __future__ import annotations

import glob
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mosaic_photon.errors import ConfigError

PIECE_BYTES = 4 << 20
CODECS = {".gz": "gz", ".zst": "zst"}
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Source:
    """One file, or one folder written by `datasets.Dataset.save_to_disk` (kind "dataset")."""

    path: str
    kind: str  # text, jsonl, parquet, arrow, dataset
    codec: str  # "", gz or zst
    size: int  # bytes on disk
    mtime_ns: int


@dataclass(frozen=True)
class Piece:
    """What one worker reads: bytes [start, stop) of a text or JSONL file, else rows; stop -1 is the end."""

    path: str
    kind: str
    codec: str
    start: int
    stop: int
    file_size: int  # bytes on disk of the whole source
    size: int  # the piece's share of them, for the progress bar


def stdlib_files() -> list[str]:
    """The running Python's standard-library sources, in a fixed order, without packages and tests."""
    root = sysconfig.get_paths()["stdlib"]
    files = [path for path in _walk(root, STDLIB_LEFT_OUT) if path.endswith(".py")]
    if not files:
        raise ConfigError(f"this Python has no standard-library source below {root}: name a source")
    return files


def find_sources(given: Iterable[str], out: str) -> list[Source]:
    """Sources named on the command line, in the order given, each folder and glob sorted by path.

    Args:
        out: absolute path of the folder to write; what lies in it and in its unfinished work is no source.

    Raises:
        ConfigError: nothing at a path, a pattern without a match, nothing to read, or an unreadable file.
    """
    found: dict[str, Source] = {}
    own = (f"{out}/", f"{out}.partial/", f"{out}.partial.lock", f"{out}.replaced/")
    for word in given:
        for path in (path for path in _expand(word) if not path.startswith(own)):
            found.setdefault(path, _source(path))
    if not any(source.size for source in found.values()):
        raise ConfigError(f"no text in {', '.join(given)}: every file there is empty, or there is none")
    return list(found.values())


def cut(source: Source) -> list[Piece]:
    """The pieces of a source, in reading order."""
    ranges = {"parquet": _row_groups, "dataset": _row_ranges}.get(source.kind)
    if ranges is not None:
        bounds = ranges(source)
    elif source.kind == "arrow" or source.codec:
        bounds = [(0, -1)]
    else:
        bounds = [(start, min(start + PIECE_BYTES, source.size)) for start in range(0, source.size, PIECE_BYTES)]
    share = source.size // max(len(bounds), 1)
    return [Piece(source.path, source.kind, source.codec, *bound, source.size, share) for bound in bounds]


def _expand(word: str) -> list[str]:
    """Absolute paths of files (or of one saved dataset) that a command-line word stands for."""
    path = os.path.abspath(os.path.expanduser(word))
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, "dataset_dict.json")):
            splits = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
            raise ConfigError(
                f"{word} is a dataset with several splits. Name one of them: "
                + ", ".join(os.path.join(word, split) for split in splits)
            )
        if os.path.isfile(os.path.join(path, "state.json")):
            return [path]
        return list(_walk(path, {"__pycache__"}))
    if os.path.exists(path):
        return [path]
    if glob.has_magic(path):
        matches = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
        if not matches:
            raise ConfigError(f"no file matches the pattern {word!r}")
        return matches
    raise ConfigError(f"source {word!r} does not exist (looked for {path})")


def _walk(root: str, left_out: set[str]) -> Iterator[str]:
    """Files below a folder, sorted, without hidden ones and folders named in `left_out`."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in left_out and not name.startswith("."))
        yield from (os.path.join(folder, name) for name in sorted(files) if not name.startswith("."))


def _source(path: str) -> Source:
    if os.path.isdir(path):
        files = [entry.stat() for entry in os.scandir(path) if entry.is_file()]
        size = sum(stat.st_size for stat in files)
        return Source(path, "dataset", "", size, max(stat.st_mtime_ns for stat in files))
    if not os.path.isfile(path):
        raise ConfigError(f"{path} is not a file: a pipe, a device or a broken link")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"cannot read {path}: permission denied")
    stem, suffix = os.path.splitext(path.lower())
    codec = CODECS.get(suffix, "")
    kind = KINDS.get(os.path.splitext(stem)[1] if codec else suffix, "text")
    if codec and kind in ("parquet", "arrow"):
        raise ConfigError(f"{path}: a {kind} file is compressed inside; decompress the outer {suffix} first")
    stat = os.stat(path)
    return Source(path, kind, codec, stat.st_size, stat.st_mtime_ns)


def _row_groups(source: Source) -> list[tuple[int, int]]:
    """Ranges of one row group each (numbers of row groups, not rows)."""
    import pyarrow.parquet

    with reading(source.path):
        groups = pyarrow.parquet.ParquetFile(source.path).num_row_groups
    return [(group, group + 1) for group in range(groups)]


def _row_ranges(source: Source) -> list[tuple[int, int]]:
    """Ranges of rows of a saved dataset, about PIECE_BYTES each."""
    from datasets import load_from_disk

    with reading(source.path):
        rows = len(load_from_disk(source.path))
    step = max(1, rows * PIECE_BYTES // max(source.size, 1))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Name the file in the errors of pyarrow and datasets, which do not."""
    import pyarrow

    try:
        yield
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, pyarrow.ArrowException) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
