"""What a stream's `index.json` says: its shards, their files, columns and hashes. No torch, no Streaming, no numpy.

`pack_index` checks it and keeps it by columns: 40 bytes a shard, its names and its hashes, in one block of bytes.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import msgspec

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import OWN

INDEX = "index.json"
LOCKS = ".locks"
RESERVED = {INDEX, LOCKS, "limit", "waits", "ahead"}
"""Names that the cache gives to files of its own, or to their locks; those of its other files begin with OWN."""
MOST_BYTES = 2**32 - 1
"""Of a shard's raw file, which says where its samples lie in 32 bits."""
PACKED_VERSION = 3
PACKED_COLUMNS = 5
_PLAIN_NAME = re.compile(r"[\w-]+\.\d+\.mds(?:\.(?!part$)\w+)?")
"""A name as MDSWriter makes it, of which nothing else need be asked."""
_AT_ONCE = 4096
"""Entries that are held as objects at a time."""


class DataError(ConfigError):
    """Data that is missing, damaged or not to be trusted. The message says which file, what is wrong, what to do."""


class ShardFile(msgspec.Struct, frozen=True, gc=False):
    """One file of a shard, relative to the stream's folder; `hashes` maps algorithm to hex digest."""

    basename: str
    bytes: int
    hashes: dict[str, str] = {}


@dataclass(frozen=True)
class Column:
    """A column of an MDS shard; `size` is its bytes per sample, None if they vary."""

    name: str
    encoding: str
    size: int | None


@dataclass(frozen=True)
class Form:
    """How a shard's file holds its samples: as MDS, or a line each."""

    format: str = "mds"
    """mds, json, xsv, csv or tsv."""
    newline: str = ""
    separator: str = ""
    """Between the columns of an XSV line."""


@dataclass(frozen=True)
class Kind:
    """What many shards have in common; the hashes are the names of the algorithms."""

    columns: tuple[Column, ...]
    compression: str | None
    raw_hashes: tuple[str, ...]
    zip_hashes: tuple[str, ...] | None
    """None: not compressed."""
    form: Form = Form()

    @property
    def stored_hashes(self) -> tuple[str, ...]:
        """Of the file that a remote holds."""
        return self.raw_hashes if self.zip_hashes is None else self.zip_hashes


@dataclass(frozen=True)
class Shard:
    """An MDS shard: `samples` samples in one raw file, which may be stored compressed as `zip`."""

    samples: int
    columns: tuple[Column, ...]
    compression: str | None
    raw: ShardFile
    zip: ShardFile | None

    @property
    def stored(self) -> ShardFile:
        """The file that a remote holds."""
        return self.zip or self.raw

    @property
    def files(self) -> tuple[ShardFile, ...]:
        """Its raw file and, if it has one, its compressed one."""
        return (self.raw, self.zip) if self.zip else (self.raw,)

    @property
    def max_bytes(self) -> int:
        """Bytes on disk while the raw file is unpacked from the compressed one."""
        return self.raw.bytes + (self.zip.bytes if self.zip else 0)


@dataclass(frozen=True)
class Header:
    """The first line of a packed index."""

    shards: int
    digest: str
    """Of the shards' sizes and hashes, see `digest_part`."""
    kinds: tuple[Kind, ...]


class _Entry(msgspec.Struct, gc=False):
    """What is read of a shard's entry. Shards of JSON lines have `columns`, the others name them in lists."""

    format: str
    samples: int
    raw_data: ShardFile
    zip_data: ShardFile | None = None
    compression: str | None = None
    column_names: tuple[str, ...] | None = None
    column_encodings: tuple[str, ...] | None = None
    column_sizes: tuple[int | None, ...] | None = None
    columns: dict[str, str] = {}
    newline: str = ""
    separator: str = ""


class _File(msgspec.Struct):
    version: Any
    shards: msgspec.Raw = msgspec.Raw(b"null")
    """Not parsed before the version is known to be ours."""


_NO_FILE = ShardFile("", 0)
_entry = msgspec.json.Decoder(_Entry)


def pack_index(data: bytes, where: str) -> bytes:
    """The content of an index.json, checked, as `table.Index` reads it. `where` names it in messages.

    A line of JSON, the Header, padded to a multiple of 8 bytes; the columns samples, raw bytes, zip bytes, kind and end
    of the shard's text, int64 of shape (5, shards); the texts, each the shard's two names and its hashes.

    Raises DataError for content that is damaged or points outside the folder.
    """
    columns, digest, rows = [array("q") for _ in range(PACKED_COLUMNS)], new_digest(), _Rows(where)
    try:
        index = msgspec.json.decode(data.removeprefix(BOM_UTF8), type=_File)
        if index.version != 2:
            raise DataError(f"{where}: MDS version {index.version!r} is not supported, only version 2")
        shards = msgspec.json.decode(index.shards, type=list[msgspec.Raw])
        for begin in range(0, len(shards), _AT_ONCE):
            entries = [_entry_of(raw) for raw in shards[begin : begin + _AT_ONCE]]
            taken = [rows.row(number, entry) for number, entry in enumerate(entries, begin)]
            for column, values in zip(columns, zip(*taken, strict=True), strict=True):
                column.extend(values)
            digest.update(digest_part(begin, ((entry.samples, entry.raw_data) for entry in entries)))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: damaged or no MDS index ({type(error).__name__}: {error})") from error
    if not sum(columns[0]):
        raise DataError(f"{where}: the dataset is empty")
    digest.update(b"]")
    header = msgspec.json.encode(Header(len(columns[0]), digest.hexdigest(), tuple(rows.kinds)))
    return b"".join((header, b" " * (-(len(header) + 1) % 8), b"\n", *columns, rows.text))


def _entry_of(raw: msgspec.Raw) -> _Entry:
    """A shard's entry, also as programs other than Streaming write it."""
    try:
        return _entry.decode(raw)
    except msgspec.ValidationError:
        return msgspec.convert(_plain(msgspec.json.decode(raw)), _Entry)


def _plain(value: Any) -> Any:
    """JSON without members that are null or {}, which are as good as absent, and with 10 for 10.0."""
    if isinstance(value, dict):
        members = {name: _plain(member) for name, member in value.items()}
        return {name: member for name, member in members.items() if member is not None and member != {}}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def new_digest() -> hashlib.blake2s:
    """To be updated with what `digest_part` gives, and a bracket in the end: of a JSON list of facts."""
    return hashlib.blake2s(b"[", digest_size=8)


def digest_part(begin: int, shards: Iterable[tuple[int, ShardFile]]) -> bytes:
    """What the digest of an index takes of the samples and raw files of the shards from `begin` on."""
    facts = [(samples, raw.bytes, sorted(raw.hashes.items())) for samples, raw in shards]
    return b", " * (begin > 0) + msgspec.json.format(msgspec.json.encode(facts), indent=0)[1:-1]


class _Rows:
    """Rows of a packed index, and what all of them point to."""

    def __init__(self, where: str) -> None:
        self.where, self.text, self.kinds = where, bytearray(), list[Kind]()
        self._numbers: dict[tuple[object, ...], int] = {}
        """The place in `kinds` of shards that have this in common."""

    def row(self, number: int, entry: _Entry) -> tuple[int, int, int, int, int]:
        """A shard's row. Raises DataError if it is not to be trusted, ValueError or TypeError if it is damaged."""
        raw, zipped = entry.raw_data, entry.zip_data or _NO_FILE
        if bool(entry.compression) != bool(entry.zip_data):
            raise DataError(f"{self.where}: shard {number} is compressed but has no compressed file, or the reverse")
        if entry.samples < 0 or raw.bytes < 0 or zipped.bytes < 0:
            raise DataError(f"{self.where}: shard {number} has a negative size")
        if raw.bytes > MOST_BYTES:
            raise DataError(f"{self.where}: shard {number} has {raw.bytes} bytes; MDS shards have less than 4 GiB")
        text = "\0".join((raw.basename, zipped.basename, *raw.hashes.values(), *zipped.hashes.values()))
        for file in (raw, entry.zip_data or raw):
            if not _PLAIN_NAME.fullmatch(file.basename):
                self._check_name(file.basename)
        if text.count("\0") != 1 + len(raw.hashes) + len(zipped.hashes):
            raise ValueError(f"a hash of shard {number} holds a NUL")
        self.text += text.encode()
        return entry.samples, raw.bytes, zipped.bytes, self._kind(number, entry), len(self.text)

    def _kind(self, number: int, entry: _Entry) -> int:
        """The place of the shard's kind."""
        raw_hashes = tuple(entry.raw_data.hashes)
        zip_hashes = tuple(entry.zip_data.hashes) if entry.zip_data else None
        columns = entry.column_names, entry.column_encodings, entry.column_sizes, tuple(entry.columns.items())
        key = columns, entry.format, entry.newline, entry.separator, entry.compression, raw_hashes, zip_hashes
        place = self._numbers.get(key)
        if place is None:
            form = _form(entry, f"{self.where}: shard {number}")
            self.kinds.append(Kind(_columns(entry), entry.compression or None, raw_hashes, zip_hashes, form))
            place = self._numbers[key] = len(self._numbers)
        return place

    def _check_name(self, basename: str) -> None:
        path = PurePosixPath(basename)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in basename or "\0" in basename:
            raise DataError(
                f"{self.where}: shard file {basename!r} lies outside the dataset's folder; the index is not to be"
                " trusted"
            )
        own = path.parts[0] in RESERVED or path.parts[0].startswith(OWN)
        if own or basename.endswith(".part"):
            raise DataError(
                f"{self.where}: shard file {basename!r} has a name that the cache uses itself; rename the shard"
            )


def _form(entry: _Entry, where: str) -> Form:
    """Raises DataError for a format that is not known, and for lines of text without line ends."""
    name = entry.format
    if name == "mds":
        return Form()
    separators = {"json": "", "csv": ",", "tsv": "\t", "xsv": entry.separator}
    if name not in separators:
        raise DataError(f"{where} has format {name!r}; mds, json, xsv, csv and tsv are supported")
    if not entry.newline or (name != "json" and not separators[name]):
        raise DataError(f"{where} has no newline or no separator")
    return Form(name, entry.newline, separators[name])


def _columns(entry: _Entry) -> tuple[Column, ...]:
    """In lines of text all sizes vary. Raises ValueError where names, encodings and sizes don't match."""
    names, encodings, sizes = entry.column_names, entry.column_encodings, entry.column_sizes
    if entry.format == "json":
        names, encodings = tuple(entry.columns), tuple(entry.columns.values())
    if entry.format != "mds":
        sizes = (None,) * len(names or ())
    if names is None or encodings is None or sizes is None:
        raise ValueError("a shard without columns")
    return tuple(Column(*column) for column in zip(names, encodings, sizes, strict=True))
