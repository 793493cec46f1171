"""What the bytes of a sample hold, by its shard's format: MDS, or the lines that JSONWriter and XSVWriter write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.compat import streaming_lazy_package
from mosaic_photon.dataloader.shards.index import Column, DataError, Form, Kind

streaming_lazy_package.install()

from streaming.base.format.json.encodings import is_json_encoding  # noqa: E402
from streaming.base.format.mds.encodings import get_mds_encoded_size, mds_decode  # noqa: E402
from streaming.base.format.xsv.encodings import is_xsv_encoding, xsv_decode  # noqa: E402


class UndecodableError(DataError):
    """A column's value is not what the index says; `data` is what is there."""

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(message)
        self.data = data


def decode(kind: Kind, data: bytes) -> Iterator[tuple[Column, Any]]:
    """A sample's columns with their values; for a value that can't be decoded the UndecodableError, not raised."""
    if kind.form.format == "mds":
        for column, value in _mds_parts(kind.columns, data):
            yield column, _decoded(column, value, mds_decode, column.encoding, value)
    else:
        yield from _text_values(kind, data)


def sample_offsets(form: Form, data: bytes) -> NDArray[np.int64]:
    """Where the samples of a text shard begin, and where the last ends: behind the header of an XSV shard."""
    newline = form.newline.encode()
    if len(newline) == 1:
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == newline[0]) + 1
    else:
        ends = np.array([match.end() for match in re.finditer(re.escape(newline), data)], np.int64)
    return ends if form.separator else np.concatenate([[0], ends])


def size_of_encoding(kind: Kind, column: Column) -> int | None:
    """Bytes of a column's value, None where they vary. Raises whatever Streaming does for an encoding of no format."""
    if kind.form.format == "mds":
        return get_mds_encoded_size(column.encoding)
    known = is_xsv_encoding if kind.form.separator else is_json_encoding
    if not known(column.encoding):
        raise ValueError(column.encoding)
    return None


def _mds_parts(columns: Sequence[Column], data: bytes) -> Iterator[tuple[Column, bytes]]:
    """The encoded values: sizes of the varying columns as uint32, then the columns."""
    variable = sum(column.size is None for column in columns)
    sizes = iter(np.frombuffer(data, np.uint32, variable).tolist())
    begin = 4 * variable
    for column in columns:
        end = begin + (column.size if column.size is not None else next(sizes))
        yield column, data[begin:end]
        begin = end


def _text_values(kind: Kind, data: bytes) -> Iterator[tuple[Column, Any]]:
    form, columns = kind.form, kind.columns
    try:
        line = data.decode("utf-8").removesuffix(form.newline)
        if form.separator:
            values: list[Any] = line.split(form.separator)
        else:
            record = json.loads(line)
            values = [record[column.name] for column in columns]
        pairs = list(zip(columns, values, strict=True))
    except (ValueError, KeyError, TypeError) as error:
        fault = f"the line is no {form.format} of the index's columns"
        pairs = [(column, _undecodable(fault, error, data)) for column in columns]
    for column, value in pairs:
        if form.separator and isinstance(value, str):
            value = _decoded(column, data, xsv_decode, column.encoding, value)
        elif isinstance(value, str):
            value = _text(column, data, value)
        yield column, value


def _text(column: Column, data: bytes, value: str) -> Any:
    """The text; JSON can also spell half of a surrogate pair, which no tokenizer takes."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return _undecodable(f"column {column.name!r} is no text, but has half of a surrogate pair", error, data)
    return value


def _decoded(column: Column, data: bytes, decoder: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return decoder(*arguments)
    except Exception as error:  # whatever Streaming's decoders, NumPy and PIL raise for damaged or odd values
        return _undecodable(f"column {column.name!r} is not {column.encoding}, as the index says", error, data)


def _undecodable(fault: str, error: Exception, data: bytes) -> UndecodableError:
    found = UndecodableError(f"{fault} ({type(error).__name__}: {error})", data)
    found.__cause__ = error
    return found
