"""What a stream's `index.json` says: its shards, their files, columns and hashes. No torch, no Streaming, no numpy.

`pack_index` checks it and keeps it by columns: 40 bytes a shard, its names and its hashes, in one block of bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from mosaic_photon.errors import ConfigError

INDEX = "index.json"
LOCKS = ".locks"
RESERVED = {INDEX, LOCKS, "limit", "waits", "ahead"}
"""Names that the cache gives to files of its own, or to their locks."""
OWN = ".mosaic_photon."
"""What the names of the cache's other files begin with."""
MOST_BYTES = 2**32 - 1
"""Of a shard's raw file, which says where its samples lie in 32 bits."""
PACKED_VERSION = 2
PACKED_COLUMNS = 5
_PLAIN_NAME = re.compile(r"[\w-]+\.\d+\.mds(?:\.(?!part$)\w+)?")
"""A name as MDSWriter makes it, of which nothing else need be asked."""
_DIGESTED_AT_ONCE = 4096
_quoted = json.encoder.encode_basestring_ascii
"""A text as `json.dumps` writes it."""


class DataError(ConfigError):
    """Data that is missing, damaged or not to be trusted. The message says which file, what is wrong, what to do."""


@dataclass(frozen=True)
class ShardFile:
    """One file of a shard, relative to the stream's folder; `hashes` maps algorithm to hex digest."""

    basename: str
    bytes: int
    hashes: Mapping[str, str]


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

    @classmethod
    def of(
        cls,
        columns: Sequence[Mapping[str, Any]],
        compression: str | None,
        raw_hashes: Sequence[str],
        zip_hashes: Sequence[str] | None,
        form: Mapping[str, str],
    ) -> Kind:
        """From what JSON keeps of it."""
        return cls(
            tuple(Column(**column) for column in columns),
            compression,
            tuple(raw_hashes),
            None if zip_hashes is None else tuple(zip_hashes),
            Form(**form),
        )

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
    def max_bytes(self) -> int:
        """Bytes on disk while the raw file is unpacked from the compressed one."""
        return self.raw.bytes + (self.zip.bytes if self.zip else 0)


def pack_index(data: bytes, where: str) -> bytes:
    """The content of an index.json, checked, as `shards.Index` reads it. `where` names it in messages.

    A line of JSON, padded to a multiple of 8 bytes; the columns samples, raw bytes, zip bytes, kind and end of the
    shard's text, int64 of shape (5, shards); the texts, each the shard's two names and its hashes.

    Raises DataError for content that is damaged or points outside the folder.
    """
    rows = _Rows(where)
    try:
        index = json.loads(data, object_hook=rows.add_if_shard)  # so that no more than one entry is held at a time
        if index["version"] != 2:
            raise DataError(f"{where}: MDS version {index['version']!r} is not supported, only version 2")
        if index["shards"] != list(range(len(rows.samples))):
            raise ValueError("not every entry of 'shards' is a shard")
        packed = rows.packed()
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: damaged or no MDS index ({type(error).__name__}: {error})") from error
    if not sum(rows.samples):
        raise DataError(f"{where}: the dataset is empty")
    return packed


class _Rows:
    """The columns of an index while it is parsed."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.samples, self._raw_bytes, self._zip_bytes = array("q"), array("q"), array("q")
        self._kinds, self._text_ends, self._text = array("q"), array("q"), bytearray()
        self._kind_numbers: dict[tuple[Any, ...], int] = {}
        self._likeness, self._kind = list[Any](), 0
        """What the last shard has in common with others, and the number of its kind."""
        self._digest, self._undigested = hashlib.blake2s(b"[", digest_size=8), list[str]()

    def add_if_shard(self, entry: dict[str, Any]) -> Any:
        """Take in a JSON object if it is a shard's entry, and give the shard's number in its place."""
        if "format" not in entry or "samples" not in entry:
            return entry
        number = len(self.samples)
        form = None if entry["format"] == "mds" else _form(entry, f"{self.where}: shard {number}")
        compression, zipped = entry.get("compression") or None, entry.get("zip_data") or None
        if bool(compression) != bool(zipped):
            raise DataError(f"{self.where}: shard {number} is compressed but has no compressed file, or the reverse")
        raw_name, raw_bytes, raw_hashes = self._file(entry["raw_data"])
        zip_name, zip_bytes, zip_hashes = self._file(zipped) if zipped else ("", 0, {})
        samples = int(entry["samples"])
        if samples < 0 or raw_bytes < 0 or zip_bytes < 0:
            raise DataError(f"{self.where}: shard {number} has a negative size")
        if raw_bytes > MOST_BYTES:
            raise DataError(f"{self.where}: shard {number} has {raw_bytes} bytes; MDS shards have less than 4 GiB")
        text = "\0".join((raw_name, zip_name, *raw_hashes.values(), *zip_hashes.values()))
        if text.count("\0") != 1 + len(raw_hashes) + len(zip_hashes):
            raise ValueError(f"a hash of shard {number} holds a NUL")
        likeness = [*_column_lists(entry), compression, [*raw_hashes], [*zip_hashes] if zipped else None, form]
        if likeness != self._likeness:  # nearly all are like the one before
            key = tuple(tuple(part) if isinstance(part, list) else part for part in likeness)
            self._likeness, self._kind = likeness, self._kind_numbers.setdefault(key, len(self._kind_numbers))
        self._kinds.append(self._kind)
        self._text += text.encode()
        self._text_ends.append(len(self._text))
        self._raw_bytes.append(raw_bytes)
        self._zip_bytes.append(zip_bytes)
        self.samples.append(samples)
        hashes = ", ".join([f"[{_quoted(name)}, {_quoted(value)}]" for name, value in sorted(raw_hashes.items())])
        self._undigested.append(f"[{samples}, {raw_bytes}, [{hashes}]]")
        if len(self._undigested) > _DIGESTED_AT_ONCE:
            self._digest_all_but(1)
        return number

    def packed(self) -> bytes:
        """What `pack_index` gives."""
        self._digest_all_but(0)
        self._digest.update(b"]")
        kinds = [asdict(_kind(*key)) for key in self._kind_numbers]
        header = json.dumps({"shards": len(self.samples), "digest": self._digest.hexdigest(), "kinds": kinds})
        columns = (self.samples, self._raw_bytes, self._zip_bytes, self._kinds, self._text_ends)
        aligned = header.encode() + b" " * (-(len(header) + 1) % 8) + b"\n"
        return b"".join((aligned, *columns, self._text))

    def _digest_all_but(self, last: int) -> None:
        """Add to the digest of a JSON list of what the shards hold. One that stays says that more will come."""
        facts = self._undigested[: len(self._undigested) - last]
        self._digest.update(", ".join(facts).encode() + b", " * last)
        del self._undigested[: len(facts)]

    def _file(self, entry: dict[str, Any]) -> tuple[str, int, dict[str, str]]:
        basename = str(entry["basename"])
        if not _PLAIN_NAME.fullmatch(basename):
            self._check_name(basename)
        return basename, int(entry["bytes"]), entry.get("hashes") or {}

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


def _form(entry: Mapping[str, Any], where: str) -> Form:
    """Of lines of text. Raises DataError for a format that is not known, and for one without line ends."""
    name = entry["format"]
    if name not in ("json", "xsv", "csv", "tsv"):
        raise DataError(f"{where} has format {name!r}; mds, json, xsv, csv and tsv are supported")
    separator = {"json": "", "csv": ",", "tsv": "\t"}.get(name) if name != "xsv" else str(entry["separator"])
    if not entry["newline"] or (name != "json" and not separator):
        raise DataError(f"{where} has no newline or no separator")
    return Form(name, str(entry["newline"]), separator or "")


def _column_lists(entry: Mapping[str, Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Names, encodings and sizes of a shard's columns; in lines of text all sizes vary."""
    if entry["format"] == "mds":
        return entry["column_names"], entry["column_encodings"], entry["column_sizes"]
    if entry["format"] == "json":
        columns = entry["columns"]
        return [*columns], [*columns.values()], [None] * len(columns)
    names = entry["column_names"]
    return names, entry["column_encodings"], [None] * len(names)


def _kind(
    names: Sequence[Any],
    encodings: Sequence[Any],
    sizes: Sequence[Any],
    compression: str | None,
    raw_hashes: tuple[str, ...],
    zip_hashes: tuple[str, ...] | None,
    form: Form | None,
) -> Kind:
    columns = tuple(
        Column(str(name), str(encoding), None if size is None else int(size))
        for name, encoding, size in zip(names, encodings, sizes, strict=True)
    )
    return Kind(columns, compression, raw_hashes, zip_hashes, form or Form())
