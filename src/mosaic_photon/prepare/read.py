"""A piece of a source -> documents' text, in order."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.prepare.cuts import is_cut
from mosaic_photon.prepare.objects import stream
from mosaic_photon.prepare.sources import PIECE_BYTES, Piece, reading
from mosaic_photon.stores import is_url

OPEN: dict[str, Callable[..., Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
Source = io.BufferedReader | None
"""What reads an object of a store; None for a file of this machine."""
AHEAD = 8
"""Objects of a store, of those that are read one after the other, whose first bytes are asked for before their turn."""


@dataclass(frozen=True)
class Fragment:
    """A document, or a part of a text file that is cut."""

    text: str
    key: bytes  # what decides the document's split: its text, for a file that is cut its first part
    first: bool  # the document begins here
    last: bool  # and ends here


class BadLineError(ConfigError):
    """A line or row that holds no text."""


def read_pieces(pieces: Sequence[Piece], text_key: str, bad_lines: list[str] | None = None) -> Iterator[Fragment]:
    """Fragments of pieces, one after the other. Args and raises: as `read_piece`."""
    coming: deque[Source] = deque()
    for number, piece in enumerate(pieces):
        coming.extend(map(_source, pieces[number + len(coming) : number + AHEAD]))
        yield from read_piece(piece, text_key, bad_lines, coming.popleft())


def read_piece(
    piece: Piece, text_key: str, bad_lines: list[str] | None = None, source: Source = None
) -> Iterator[Fragment]:
    """Fragments of a piece.

    Args:
        source: what reads it, if that is open already.
        bad_lines: takes what is wrong with lines and rows that hold no text, and where; None: the first is an error.

    Raises:
        ConfigError: text that is not UTF-8 or is binary, a line that is not JSON, a missing text key.
    """
    source = source or _source(piece)
    if piece.kind == "text":
        yield from _text_fragments(piece, source)
        return
    records = {"jsonl": _jsonl, "parquet": _parquet, "arrow": _arrow, "dataset": _dataset}[piece.kind]
    for where, record in records(piece, text_key, source):
        try:
            text = _text_of(record, text_key)
            yield Fragment(text, _encoded(text), first=True, last=True)
        except BadLineError as error:
            message = f"{piece.path}, {where}: {error}"
            if bad_lines is None:
                raise ConfigError(message) from error
            bad_lines.append(message)


def _source(piece: Piece) -> Source:
    if not is_url(piece.path):
        return None
    start = max(0, (piece.file_size if piece.kind == "parquet" else piece.start) - 8)  # a footer, a line end before
    return stream(piece.path, piece.file_size, start, piece.stop)


def _text_fragments(piece: Piece, source: Source) -> Iterator[Fragment]:
    blocks = _text_blocks(piece, source)
    key = b""
    if piece.start:
        begin = replace(piece, start=0, stop=PIECE_BYTES)
        key = next(_text_blocks(begin, _source(begin)))[1]
    offset, block = next(blocks, (0, b""))
    while block:
        key = key or block
        following = next(blocks, (0, b""))
        last = not following[1] if piece.stop == -1 else offset + len(block) == piece.file_size
        yield Fragment(_decode(block, piece.path, offset), key, first=offset == 0, last=last)
        offset, block = following


def _text_blocks(piece: Piece, source: Source) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of the parts that begin in the piece: from the first cut there on, PIECE_BYTES or more each."""
    with reading(piece.path), _open(piece, source) as stream:
        if not piece.cuttable:
            yield 0, stream.read()
            return
        position, line = _first_cut(stream, piece.start)
        while line and (piece.stop == -1 or position < piece.stop):
            parts, size = [line], len(line)
            missing = PIECE_BYTES - 1 - position % PIECE_BYTES - size  # up to the next boundary
            if missing >= 0:
                parts.append(_read_lines(stream, missing))
            line = stream.readline()
            while line and not is_cut(parts[-1], line):
                parts.append(line)
                line = stream.readline()
            block = b"".join(parts)
            yield position, block
            position += len(block)


def _first_cut(stream: Any, start: int) -> tuple[int, bytes]:
    """Where the first line that may begin a part begins, from `start` on, and that line."""
    if start == 0:
        return 0, stream.readline()
    back = max(0, start - 8)
    stream.seek(back)
    before = _read_lines(stream, start - 1 - back)
    position, line = back + len(before), stream.readline()
    while line and not is_cut(before, line):
        before, position, line = line, position + len(line), stream.readline()
    return position, line


def _read_lines(stream: Any, size: int) -> bytes:
    """`size` bytes and the rest of the line after them."""
    return stream.read(size) + stream.readline()


def _open(piece: Piece, source: Source) -> Any:
    if piece.codec in OPEN:
        return OPEN[piece.codec](piece.path if source is None else source, "rb")
    stream = source or open(piece.path, "rb")  # noqa: SIM115 (closed by the caller's `with`)
    if piece.codec == "zst":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=True)
        return io.BufferedReader(reader, 1 << 20)
    return stream


def _decode(block: bytes, path: str, offset: int) -> str:
    """UTF-8 text with line ends as they are, without a byte order mark. A null byte means that the file is not text."""
    if offset == 0 and block.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{path} is UTF-16 text: convert it (iconv -f utf-16 -t utf-8) or leave it out")
    if (null := block.find(b"\0")) >= 0:
        raise ConfigError(
            f"{path} is a binary file (null byte at {offset + null}). Name text files, for example with a "
            "pattern: 'folder/**/*.txt'"
        )
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text (byte {offset + error.start} is 0x{block[error.start]:02x}). "
            "Convert it (iconv -t utf-8) or leave it out"
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def _text_of(record: Any, text_key: str) -> str:
    """The text of a line or row. Raises BadLineError where there is none."""
    if isinstance(record, bytes):
        line = record
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadLineError(f"not JSON, one object a line is wanted: {error}") from error
        except RecursionError as error:
            raise BadLineError("nested too deeply for JSON") from error
        if not isinstance(record, dict):
            raise BadLineError(f"one JSON object a line is wanted, got {line[:40]!r}")
    if text_key not in record:
        raise BadLineError(_no_key(text_key, record))
    if not isinstance(record[text_key], str):
        raise BadLineError(f"{text_key!r} is {type(record[text_key]).__name__}, not text")
    return record[text_key]


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadLineError(f"half of a surrogate pair, which is no character: {error}") from error


def _jsonl(piece: Piece, _: str, source: Source) -> Iterator[tuple[str, bytes]]:
    with reading(piece.path), _open(piece, source) as stream:
        offset = 0
        if piece.start:
            stream.seek(piece.start - 1)
            offset = piece.start - 1 + len(stream.readline())  # a line that begins before is another piece's
        while (piece.stop == -1 or offset < piece.stop) and (line := stream.readline()):
            where, offset = f"line at byte {offset}", offset + len(line)
            if line.strip():
                yield where, line


def _parquet(piece: Piece, text_key: str, source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet

    with reading(piece.path):
        file = pyarrow.parquet.ParquetFile(source or piece.path, buffer_size=1 << 20 if source else 0)
        _check_key(text_key, file.schema_arrow.names, piece.path)
        for group in range(file.num_row_groups):
            if not piece.start <= _begin(file.metadata.row_group(group)) < piece.stop:
                continue
            row = 0
            for batch in file.iter_batches(256, row_groups=[group], columns=[text_key]):
                for text in batch.column(0).to_pylist():
                    yield f"row {row} of row group {group}", {text_key: text}
                    row += 1


def _begin(group: Any) -> int:
    """Where in the file a row group begins."""
    columns = map(group.column, range(group.num_columns))
    return min(column.dictionary_page_offset or column.data_page_offset for column in columns)


def _arrow(piece: Piece, text_key: str, source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow

    with reading(piece.path), pyarrow.memory_map(piece.path) if source is None else pyarrow.PythonFile(source) as file:
        try:
            batches: Any = pyarrow.ipc.open_stream(file)
        except pyarrow.ArrowInvalid:
            file.seek(0)
            try:
                whole = pyarrow.ipc.open_file(file)
            except pyarrow.ArrowInvalid as error:
                raise ConfigError(f"{piece.path} is not an Arrow file: {error}") from error
            batches = map(whole.get_batch, range(whole.num_record_batches))
        row = 0
        for batch in batches:
            _check_key(text_key, batch.schema.names, piece.path)
            for text in batch.column(text_key):
                yield f"row {row}", {text_key: text.as_py()}
                row += 1


def _dataset(piece: Piece, text_key: str, _: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_from_disk

    with reading(piece.path):
        rows = load_from_disk(piece.path)
        _check_key(text_key, rows.column_names, piece.path)
        for number, text in enumerate(rows[piece.start : piece.stop][text_key], piece.start):
            yield f"row {number}", {text_key: text}


def _no_key(text_key: str, known: Any) -> str:
    return f"no {text_key!r} to read text from (--text-key).{nearest(text_key, known)}"


def _check_key(text_key: str, known: Any, where: str) -> None:
    if text_key not in known:
        raise ConfigError(f"{where}: {_no_key(text_key, known)}")
