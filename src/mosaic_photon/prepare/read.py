"""A piece of a source -> documents' text, in order."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.prepare.sources import PIECE_BYTES, Piece, reading


@dataclass(frozen=True)
class Fragment:
    """A document, or a part of a text file larger than PIECE_BYTES."""

    text: str
    key: bytes  # what decides the document's split: its text, for a large file its first part
    first: bool  # the document begins here
    last: bool  # and ends here


def read_piece(piece: Piece, text_key: str) -> Iterator[Fragment]:
    """Fragments of a piece. Empty documents are left out.

    Raises:
        ConfigError: text that is not UTF-8 or is binary, a line that is not JSON, a missing text key.
    """
    if piece.kind == "text":
        yield from _text_fragments(piece)
        return
    texts = {"jsonl": _jsonl, "parquet": _parquet, "arrow": _arrow, "dataset": _dataset}[piece.kind]
    for where, text in texts(piece, text_key):
        if not isinstance(text, str):
            raise ConfigError(f"{piece.path}, {where}: {text_key!r} is {type(text).__name__}, not text")
        if text:
            yield Fragment(text, _encode(text, f"{piece.path}, {where}"), first=True, last=True)


def _text_fragments(piece: Piece) -> Iterator[Fragment]:
    key = b"" if piece.start == 0 else next(_blocks(piece, 0, PIECE_BYTES))[1]
    blocks = _blocks(piece, piece.start, piece.stop)
    offset, block = next(blocks, (0, b""))
    while block:
        key = key or block
        following = next(blocks, (0, b""))
        last = not following[1] if piece.codec else offset + len(block) == piece.file_size
        yield Fragment(_decode(block, piece.path, offset), key, first=offset == 0, last=last)
        offset, block = following


def _blocks(piece: Piece, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of whole lines that start in [start, stop), PIECE_BYTES or one line at a time."""
    with _open(piece) as stream:
        position = start
        if start:
            stream.seek(start - 1)
            position = start - 1 + len(stream.readline())
        boundary = start + PIECE_BYTES
        while stop == -1 or position < stop:
            end = boundary if stop == -1 else min(boundary, stop)
            boundary += PIECE_BYTES
            if position >= end:
                continue
            block = _read(stream, end - 1 - position, piece)
            if not block:
                return
            yield position, block
            position += len(block)


def _read(stream: io.BufferedIOBase, size: int, piece: Piece) -> bytes:
    """`size` bytes and the rest of the line after them."""
    import zstandard

    try:
        return stream.read(size) + stream.readline()
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise ConfigError(f"cannot read {piece.path}: {error}") from error


def _open(piece: Piece) -> Any:
    if piece.codec == "gz":
        return gzip.open(piece.path, "rb")
    stream = open(piece.path, "rb")  # noqa: SIM115 (closed by the caller's `with`)
    if piece.codec == "zst":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=True)
        return io.BufferedReader(reader, 1 << 20)
    return stream


def _decode(block: bytes, path: str, offset: int) -> str:
    """UTF-8 text with line ends as they are. A null byte means that the file is not text."""
    if (null := block.find(b"\0")) >= 0:
        raise ConfigError(
            f"{path} is a binary file (null byte at {offset + null}). Name text files, for example with a "
            "pattern: 'folder/**/*.txt'"
        )
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text (byte {offset + error.start} is 0x{block[error.start]:02x}). "
            "Convert it (iconv -t utf-8) or leave it out"
        ) from error


def _encode(text: str, where: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: half of a surrogate pair, which is no character: {error}") from error


def _jsonl(piece: Piece, text_key: str) -> Iterator[tuple[str, Any]]:
    for offset, block in _blocks(piece, piece.start, piece.stop):
        for line in block.split(b"\n"):
            where, offset = f"line at byte {offset}", offset + len(line) + 1
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{piece.path}, {where}: not JSON, one object a line is wanted: {error}") from error
            if not isinstance(record, dict):
                raise ConfigError(f"{piece.path}, {where}: one JSON object a line is wanted, got {line[:40]!r}")
            _check_key(text_key, record, f"{piece.path}, {where}")
            yield where, record[text_key]


def _parquet(piece: Piece, text_key: str) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet

    with reading(piece.path):
        file = pyarrow.parquet.ParquetFile(piece.path)
        _check_key(text_key, file.schema_arrow.names, piece.path)
        for batch in file.iter_batches(256, row_groups=range(piece.start, piece.stop), columns=[text_key]):
            yield from ((f"row group {piece.start}", text) for text in batch.column(0).to_pylist())


def _arrow(piece: Piece, text_key: str) -> Iterator[tuple[str, Any]]:
    import pyarrow

    with reading(piece.path), pyarrow.memory_map(piece.path) as source:
        try:
            batches: Any = pyarrow.ipc.open_stream(source)
            schema = batches.schema
        except pyarrow.ArrowInvalid:
            file = _open_arrow_file(source, piece.path)
            schema = file.schema
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        _check_key(text_key, schema.names, piece.path)
        row = 0
        for batch in batches:
            for text in batch.column(text_key):
                yield f"row {row}", text.as_py()
                row += 1


def _open_arrow_file(source: Any, path: str) -> Any:
    import pyarrow

    try:
        return pyarrow.ipc.open_file(source)
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{path} is not an Arrow file: {error}") from error


def _dataset(piece: Piece, text_key: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_from_disk

    with reading(piece.path):
        rows = load_from_disk(piece.path)
        _check_key(text_key, rows.column_names, piece.path)
        for number, text in enumerate(rows[piece.start : piece.stop][text_key], piece.start):
            yield f"row {number}", text


def _check_key(text_key: str, known: Any, where: str) -> None:
    if text_key not in known:
        raise ConfigError(f"{where}: no {text_key!r} to read text from (--text-key).{nearest(text_key, known)}")
