"""What a data config's streams hold, as plain records: read from their indexes, the cache and, if asked, the files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.node.folder import settle_folders
from mosaic_photon.dataloader.shards.fetch import Source
from mosaic_photon.dataloader.shards.files import best_hash, fault_of
from mosaic_photon.dataloader.shards.formats import UndecodableError
from mosaic_photon.dataloader.shards.index import Column, DataError
from mosaic_photon.dataloader.shards.reader import token_column
from mosaic_photon.dataloader.shards.store import stamp_of
from mosaic_photon.dataloader.shards.table import Index
from mosaic_photon.dataloader.tokens import ANY_VOCABULARY, fault_of_bytes

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Vocabulary:
    """What is known of the tokens that samples hold."""

    bytes_dtype: str
    """Type of tokens stored as plain bytes."""
    size: int = ANY_VOCABULARY
    decode: Decode | None = None


@dataclass
class StreamReport:
    """One stream. Sizes in bytes."""

    name: str
    remote: str | None
    local: str
    shards: int
    shards_here: int  # whole and uncompressed in `local`
    samples: int
    tokens: int | None  # None: text, tokenized when it is read
    tokens_exact: bool  # False: an upper bound from file sizes, samples being of different lengths
    raw_bytes: int
    stored_bytes: int  # as they are in the remote
    columns: dict[str, str]  # name -> encoding
    compression: list[str]
    hashes: list[str]  # algorithms in the index
    epoch_samples: int
    share: float  # of an epoch's samples
    files_verified: int | None = None  # None: not asked for
    files_hashed: int | None = None  # of those verified; the others have no hash in the index, only a size
    damaged: dict[str, str] = field(default_factory=dict)  # file -> what is wrong with it
    problem: str = ""  # why a job can't train on its samples


@dataclass
class LoaderReport:
    """One loader of a data config."""

    loader: str
    epoch_samples: int
    streams: list[StreamReport]
    samples: list[dict[str, Any]] = field(default_factory=list)


def why_unreached(source: Source) -> str | None:
    """Why a stream's remote does not answer, as a job goes on from its cache then; None where it does."""
    try:
        stamp_of(source)
    except Exception as error:  # each store's client has exceptions of its own
        return f"{type(error).__name__}: {error}"
    return None


def open_dataset(loader: dict[str, Any]) -> ShardedDataset:
    """The loader's shards, indexes fetched, nothing else read. Raises ConfigError, DataError as a job would."""
    config = copy.deepcopy(loader["dataset"])
    settle_folders(config)
    return ShardedDataset(config)


def inspect_loader(loader: dict[str, Any], dataset: ShardedDataset) -> LoaderReport:
    """All that the indexes and file sizes tell."""
    bytes_dtype = loader["dataset"].get("token_encoding_type") or "int64"
    streams = [_stream(dataset, number, bytes_dtype) for number in range(len(dataset.streams))]
    return LoaderReport(loader["name"], dataset.epoch_size, streams)


def verify(report: LoaderReport, dataset: ShardedDataset, advance: Callable[[int], None]) -> None:
    """Hash every file that is here; `advance` is told the bytes read. Nothing is changed on disk.

    A file without a hash in its index is compared by size. A shard that is neither here nor has a remote is damage.
    """
    by_name = {stream.name: stream for stream in report.streams}
    for stream in report.streams:
        stream.files_verified = stream.files_hashed = 0
    for slot in map(dataset.cache.slot, range(len(dataset.shards))):
        source, files = slot.source, slot.files_here()
        stream = by_name[source.name]
        if not files and (source.data or not source.remote):
            stream.damaged[str((source.data or source.folder) / slot.shard.stored.basename)] = (
                "missing, and the stream has no remote"
            )
        for path, file in files:
            algorithm = best_hash(file)
            if fault := fault_of(path, file, algorithm):
                stream.damaged[str(path)] = fault
            stream.files_verified = (stream.files_verified or 0) + 1
            stream.files_hashed = (stream.files_hashed or 0) + (algorithm is not None)
            advance(file.bytes)


def bytes_here(dataset: ShardedDataset) -> int:
    """Bytes that `verify` will read."""
    slots = map(dataset.cache.slot, range(len(dataset.shards)))
    return sum(file.bytes for slot in slots for _, file in slot.files_here())


def first_samples(dataset: ShardedDataset, count: int, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The first samples of each stream, in the order of its shards; fetched where they are not here.

    Whatever they hold is shown; what is wrong with one is under "problems".
    """
    shown = []
    for number, name in enumerate(dataset.stream_names):
        first = int(dataset.sample_offset_per_stream[number])
        for sample_id in range(first, first + min(count, int(dataset.samples_per_stream[number]))):
            shown.append({"stream": name, "sample": sample_id - first, **_shown(dataset.values(sample_id), vocabulary)})
    return shown


def _stream(dataset: ShardedDataset, number: int, bytes_dtype: str) -> StreamReport:
    source, stream = dataset.cache.sources[number], dataset.streams[number]
    begin, index = int(dataset.shard_offset_per_stream[number]), dataset.shards.indexes[number]
    tokens, exact, problem = None, True, ""
    try:
        tokens, exact = _tokens(index, bytes_dtype, f"stream {source.name!r}")
    except DataError as error:  # its column of tokens holds something else
        problem = str(error)
    return StreamReport(
        name=source.name,
        remote=None if source.data else source.remote,
        local=str(source.data or source.folder),
        shards=len(index),
        shards_here=sum(dataset.cache.is_here(shard_id) for shard_id in range(begin, begin + len(index))),
        samples=int(dataset.samples_per_stream[number]),
        tokens=tokens,
        tokens_exact=exact,
        raw_bytes=int(index.raw_bytes.sum()),
        stored_bytes=int(index.stored_bytes.sum()),
        columns={column.name: column.encoding for kind in index.kinds for column in kind.columns},
        compression=sorted({kind.compression or "none" for kind in index.kinds}),
        hashes=sorted({name for kind in index.kinds for name in kind.stored_hashes}),
        epoch_samples=int(stream.choose),
        share=int(stream.choose) / dataset.epoch_size,
        problem=problem,
    )


def _tokens(index: Index, bytes_dtype: str, where: str) -> tuple[int | None, bool]:
    """How many tokens the stream has, and whether that is exact; None where it holds text."""
    total, exact = 0, True
    for number, kind in enumerate(index.kinds):
        column, own = token_column(kind.columns, bytes_dtype, where), index.kind == number
        if column is None:
            return None, True
        if column.length is None:
            exact = False
            total += int(index.raw_bytes[own].sum()) // column.dtype.itemsize
        else:
            total += int(index.samples[own].sum()) * column.length
    return total, exact


def _shown(values: Iterable[tuple[Column, Any]], vocabulary: Vocabulary) -> dict[str, Any]:
    """A sample's values as JSON has them; its tokens also as text; what can't be read, and why, under "problems"."""
    shown: dict[str, Any] = {}
    problems = []
    for column, value in values:
        if isinstance(value, UndecodableError):
            problems.append(str(value))
            value = value.data
        if column.name == "tokens":
            fields, problem = _shown_tokens(value, vocabulary)
            shown |= fields
            problems += [problem] * bool(problem)
        else:
            shown[column.name] = _as_json(value)
    return shown | ({"problems": problems} if problems else {})


def _shown_tokens(value: Any, vocabulary: Vocabulary) -> tuple[dict[str, Any], str]:
    """The tokens, their text, and what is wrong with them."""
    problem = ""
    if isinstance(value, bytes):
        dtype = np.dtype(vocabulary.bytes_dtype)
        problem = fault_of_bytes(value, dtype, vocabulary.size)
        if len(value) % dtype.itemsize:
            return {"tokens": value.hex(" ")}, problem
        value = np.frombuffer(value, dtype)
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iu":
        return {"tokens": _as_json(value)}, problem or "its tokens are no row of token ids"
    tokens = value.tolist()
    outside = [token for token in tokens if not 0 <= token < vocabulary.size]
    fields: dict[str, Any] = {"tokens": tokens}
    if outside:
        fields["outside_vocabulary"] = sorted(set(outside))
        problem = problem or f"{len(outside)} token ids are outside the vocabulary of {vocabulary.size} tokens"
    if vocabulary.decode is not None:
        fields["decoded"] = vocabulary.decode([token for token in tokens if 0 <= token < vocabulary.size])
    return fields, problem


def _as_json(value: Any) -> Any:
    """The value as JSON has it: arrays as lists, bytes as text; its `repr` where JSON has nothing like it."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value
