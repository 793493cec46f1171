"""Where the text is: files, folders, globs and datasets on disk or in stores, cut into pieces that workers read alone.

A piece of a text, JSONL or Parquet file is a range of bytes and holds the lines or row groups that start in it, so a
large file is read by many workers, and none of them is opened to cut it. A compressed file, which has no random access,
is one piece.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import lzma
import os
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from mosaic_photon.errors import ConfigError
from mosaic_photon.prepare.listing import Info, LeftOut, list_url, version_of
from mosaic_photon.stores import is_url

PIECE_BYTES = 4 << 20
CODECS = {".gz": "gz", ".zst": "zst", ".bz2": "bz2", ".xz": "xz"}
KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".arrow": "arrow"}
STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True, slots=True)
class TextSource:
    """One file or object, or one folder written by `datasets.Dataset.save_to_disk` (kind "dataset")."""

    path: str
    kind: str  # text, jsonl, parquet, arrow, dataset
    codec: str  # "", gz, zst, bz2 or xz
    size: int  # bytes stored
    version: str  # changes when the content does: a file's time, what a store has for it


@dataclass(frozen=True, slots=True)
class Piece:
    """What one worker reads: bytes [start, stop) of a file, or of a saved dataset rows; stop -1 is the end."""

    path: str
    kind: str
    codec: str
    start: int
    stop: int
    file_size: int  # bytes stored of the whole source
    size: int  # the piece's share of them, for the progress bar
    cuttable: bool = True  # a text may be tokenized in parts


def stdlib_files() -> list[str]:
    """The running Python's standard-library sources, in a fixed order, without packages and tests."""
    root = sysconfig.get_paths()["stdlib"]
    files = [path for path in _walk(root, STDLIB_LEFT_OUT, LeftOut(list)) if path.endswith(".py")]
    if not files:
        raise ConfigError(f"this Python has no standard-library source below {root}: name a source")
    return files


def find_sources(given: Iterable[str], out: str, left_out: LeftOut) -> list[TextSource]:
    """Sources named on the command line, in the order given, each folder and glob sorted by path, each file once.

    Args:
        out: absolute path, or address, of the folder to write; what lies in it and in its unfinished work is no source.
        left_out: takes what is passed over.

    Raises:
        ConfigError: nothing at a path, a pattern without a match, nothing to read, or an unreadable file.
    """
    found: dict[str, TextSource] = {}
    given_as: dict[str, str] = {}
    out = out if is_url(out) else os.path.realpath(out)
    own = (f"{out}/", f"{out}.partial/", f"{out}.partial.lock", f"{out}.replaced/")
    for word in given:
        for path, info in _expand(word, left_out):
            real = os.path.realpath(path) if info is None else path
            first = given_as.setdefault(real, path)
            if real.startswith(own):
                left_out["written by prepare"].append(path)
            elif first != path:
                left_out["read already under another name"].append(path)
            else:
                found.setdefault(path, _source(path) if info is None else _object(path, info))
    if not any(source.size for source in found.values()):
        raise ConfigError(f"no text in {', '.join(given)}: every file there is empty, or there is none")
    return list(found.values())


def cut(source: TextSource, cuttable: bool) -> list[Piece]:
    """The pieces of a source, in reading order; a text that is not `cuttable` is one."""
    if source.kind == "dataset":
        bounds = _row_ranges(source)
    elif source.kind == "arrow" or source.codec or (source.kind == "text" and not cuttable):
        bounds = [(0, -1)]
    else:
        size = max(source.size, source.kind == "parquet")  # of no bytes it is damaged, and is looked at
        bounds = [(start, min(start + PIECE_BYTES, size)) for start in range(0, size, PIECE_BYTES)]
    share = source.size // max(len(bounds), 1)
    return [Piece(source.path, source.kind, source.codec, *bound, source.size, share, cuttable) for bound in bounds]


def _expand(word: str, left_out: LeftOut) -> Iterator[tuple[str, Info | None]]:
    """What a command-line word stands for: absolute paths, or addresses with what their store says of them."""
    if is_url(word):
        yield from list_url(word, left_out).items()
    else:
        for path in _paths(word, left_out):
            yield path, None


def _paths(word: str, left_out: LeftOut) -> list[str]:
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
        return list(_walk(path, {"__pycache__"}, left_out))
    if os.path.exists(path):
        return [path]
    if glob.has_magic(path):
        matches = sorted({match for match in _matches(path, left_out) if os.path.isfile(match)})
        if not matches:
            raise ConfigError(f"no file matches the pattern {word!r}")
        return matches
    raise ConfigError(f"source {word!r} does not exist (looked for {path})")


def _walk(root: str, names: set[str], left_out: LeftOut) -> Iterator[str]:
    """Files below a folder and below those that it links to, sorted, without hidden ones and folders of these names."""
    seen = {_identity(root)}

    def unreadable(error: OSError) -> None:
        left_out["folders that cannot be read"].append(error.filename)

    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        kept = []
        for name in sorted(folders):
            path = os.path.join(folder, name)
            if name in names or name.startswith("."):
                left_out[f"folders called {name}" if name in names else "hidden"].append(path)
            elif (identity := _identity(path)) in seen:
                left_out["links to a folder that is read already"].append(path)
            else:
                seen.add(identity)
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            if name.startswith("."):
                left_out["hidden"].append(os.path.join(folder, name))
            else:
                yield os.path.join(folder, name)


def _matches(pattern: str, left_out: LeftOut) -> Iterator[str]:
    """Paths that match, as `glob.glob` finds them, but what links lead to twice under one name only."""
    parts = pattern.split("/")
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    first, matching = parts.index("**"), _Matching(left_out)
    for folder in glob.iglob("/".join([*parts[:first], ""])):
        yield from matching.below(folder, parts[first:])


class _Matching:
    """What matches a pattern with `**`. A folder is looked at once for each rest of the pattern, so circles end."""

    def __init__(self, left_out: LeftOut) -> None:
        self._left_out, self._passed = left_out, set[str]()
        self._seen: dict[tuple[int, int, int], str] = {}
        """What has begun: folder and parts of the pattern left -> the folder's path."""

    def below(self, folder: str, pattern: list[str]) -> Iterator[str]:
        """Paths in the folder and below that match a pattern that begins with `**`."""
        at = (*_identity(folder), len(pattern))
        if at in self._seen:
            if self._seen[at] != folder:
                self._pass("links to a folder that is read already", folder)
            return
        self._seen[at] = folder
        yield from self._inside(folder, pattern[1:] or ["*"])
        for name in self._names(folder):
            path = os.path.join(folder, name)
            if not name.startswith("."):
                if os.path.isdir(path):
                    yield from self.below(path, pattern)
            elif not any(_fits(name, part) for part in pattern):  # spelled out, it is looked for where it belongs
                self._pass("hidden", path)

    def _inside(self, folder: str, pattern: list[str]) -> Iterator[str]:
        """Paths that match a pattern of names in the folder."""
        part, *rest = pattern
        if part == "**":
            yield from self.below(folder, pattern)
            return
        names = [name for name in self._names(folder) if _fits(name, part)] if glob.has_magic(part) else [part]
        for path in (os.path.join(folder, name) for name in names):
            if rest and os.path.isdir(path):
                yield from self._inside(path, rest)
            elif not rest and os.path.exists(path):
                yield path

    def _names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except OSError:
            self._pass("folders that cannot be read", folder)
            return []

    def _pass(self, reason: str, path: str) -> None:
        if path not in self._passed:
            self._passed.add(path)
            self._left_out[reason].append(path)


def _fits(name: str, part: str) -> bool:
    """Whether a part of a pattern fits a name; hidden ones have to be spelled out."""
    return fnmatch.fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))


def _identity(folder: str) -> tuple[int, int]:
    """What tells a folder from all others, whatever its path."""
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _source(path: str) -> TextSource:
    if os.path.isdir(path):
        files = [entry.stat() for entry in os.scandir(path) if entry.is_file()]
        size = sum(stat.st_size for stat in files)
        return TextSource(path, "dataset", "", size, str(max(stat.st_mtime_ns for stat in files)))
    if not os.path.isfile(path):
        raise ConfigError(f"{path} is not a file: a pipe, a device or a broken link")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"cannot read {path}: permission denied")
    stat = os.stat(path)
    return TextSource(path, *_kind(path), stat.st_size, str(stat.st_mtime_ns))


def _object(url: str, info: Info) -> TextSource:
    return TextSource(url, *_kind(url), info["size"], version_of(info))


def _kind(path: str) -> tuple[str, str]:
    """(kind, codec) by the name."""
    stem, suffix = os.path.splitext(path.lower())
    codec = CODECS.get(suffix, "")
    kind = KINDS.get(os.path.splitext(stem)[1] if codec else suffix, "text")
    if codec and kind in ("parquet", "arrow"):
        raise ConfigError(f"{path}: a {kind} file is compressed inside; decompress the outer {suffix} first")
    return kind, codec


@cache
def _row_ranges(source: TextSource) -> list[tuple[int, int]]:
    """Ranges of rows of a saved dataset, about PIECE_BYTES each."""
    from datasets import load_from_disk

    with reading(source.path):
        rows = len(load_from_disk(source.path))
    step = max(1, rows * PIECE_BYTES // max(source.size, 1))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Name the file in what decompressors, pyarrow and datasets raise for a damaged one."""
    try:
        yield
    except _damaged() as error:  # which is asked, and imports, only where something is wrong
        raise ConfigError(f"cannot read {path}: {error}") from error


def _damaged() -> tuple[type[Exception], ...]:
    import pyarrow
    import zstandard

    kinds = (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError, zlib.error, lzma.LZMAError)
    return *kinds, zstandard.ZstdError, pyarrow.ArrowException
