"""Streaming's dataset without its shared memory: the same samples in the same order, read by sample id.

StreamingDataset learns who it is from the environment, which is wrong in layouts with pipeline parallelism
(mosaicml/streaming#827, #854), and coordinates through /dev/shm segments that a killed job leaves behind. Here its
settings, its streams and their weights are kept; fetching and reading shards is `shards/`, the order `order/`.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_photon.compat import streaming_lazy_package
from mosaic_photon.compat.streaming_s3_retries import asking_once
from mosaic_photon.dataloader.node.settings import settings
from mosaic_photon.dataloader.order.epoch import EpochOrder, StreamPart
from mosaic_photon.dataloader.shards.cache import ShardCache
from mosaic_photon.dataloader.shards.cache_folder import open_source
from mosaic_photon.dataloader.shards.fetch import Source
from mosaic_photon.dataloader.shards.files import known_hashes
from mosaic_photon.dataloader.shards.formats import UndecodableError, decode, size_of_encoding
from mosaic_photon.dataloader.shards.index import INDEX, Column, DataError, Kind
from mosaic_photon.dataloader.shards.reader import ShardReader
from mosaic_photon.dataloader.shards.table import Index
from mosaic_photon.errors import ConfigError, ask_upstream
from mosaic_photon.job.data_config import streams_of
from mosaic_photon.places import Place, check_apart, place_of

streaming_lazy_package.install()

from streaming.base.compression import is_compression  # noqa: E402
from streaming.base.dataset import StreamingDataset  # noqa: E402
from streaming.base.stream import Stream  # noqa: E402
from streaming.base.util import bytes_to_int, number_abbrev_to_int  # noqa: E402

DEFAULTS = {name: one.default for name, one in inspect.signature(StreamingDataset.__init__).parameters.items()}
MANY_SHARDS = 512
"""With this many in each stream, 64 canonical nodes cost nothing, and let up to 64 nodes read a part each."""

logger = logging.getLogger(__name__)


class ShardedDataset:
    """The samples of a data config's streams, which any process may read by id, in any order.

    Attributes are called as StreamingDataset calls them. Arrays have the shape (streams,) or (shards,).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Opens the streams and fetches their indexes.

        Args:
            config: the data config's `dataset` table, checked, its folders settled. What is not Streaming's is ignored.

        Raises:
            DataError: data that cannot be used.
            ConfigError: wrong settings.
        """
        chosen = DEFAULTS | {key: value for key, value in config.items() if value is not None}
        self.predownload: int | None = chosen["predownload"]
        self.batching_method: str = chosen["batching_method"]
        self.sampling_method: str = chosen["sampling_method"]
        self.sampling_granularity: int = chosen["sampling_granularity"]
        self.partition_algo: str = chosen["partition_algo"]
        self.shuffle: bool = chosen["shuffle"]
        self.shuffle_algo: str = chosen["shuffle_algo"]
        self.shuffle_seed: int = chosen["shuffle_seed"]
        streams = streams_of(config)
        self.stream_names, self.streams = list(streams), [_stream(*stream) for stream in streams.items()]
        self._open_shards(chosen["allow_unsafe_types"], chosen["cache_limit"])
        self._weigh_streams(chosen["epoch_size"])
        self.num_canonical_nodes = chosen["num_canonical_nodes"] or self._default_canonical_nodes()
        block = chosen["shuffle_block_size"] or max(4_000_000 // self.num_canonical_nodes, 1 << 18)
        self.shuffle_block_size = int(block)

    def _open_shards(self, allow_unsafe_types: bool, cache_limit: int | str | None) -> None:
        named = zip(self.stream_names, self.streams, strict=True)
        places = [place_of(name, stream.local, stream.remote, stream.split) for name, stream in named]
        check_apart(places)
        sources = [_source(place, stream) for place, stream in zip(places, self.streams, strict=True)]
        opened = [open_source(source, allow_unsafe_types) for source in sources]
        sources = [source for source, _ in opened]
        indexes = _as_known(sources, [index for _, index in opened])
        for source, index in zip(sources, indexes, strict=True):
            for kind in index.kinds:
                _check_known(kind, source)
        self.cache = ShardCache(sources, indexes, bytes_to_int(cache_limit) if cache_limit else None)
        self.shards, self.reader = self.cache.shards, ShardReader(self.cache)
        self.shards_per_stream = np.array([len(index) for index in indexes], np.int64)
        self.shard_offset_per_stream = self.shards_per_stream.cumsum() - self.shards_per_stream
        self.stream_per_shard = np.repeat(np.arange(len(indexes)), self.shards_per_stream)
        self.samples_per_shard = self.shards.samples
        self.shard_ends = self.samples_per_shard.cumsum()
        self.sample_offset_per_shard = self.shard_ends - self.samples_per_shard
        self.samples_per_stream = np.array([index.samples.sum() for index in indexes], np.int64)
        self.sample_offset_per_stream = self.samples_per_stream.cumsum() - self.samples_per_stream
        self.num_samples = int(self.samples_per_stream.sum())

    def _default_canonical_nodes(self) -> int:
        """The checkpoint's number; at the begin one that depends on the data alone, not on the number of nodes."""
        known = settings().known
        if known is not None:
            return known.num_canonical_nodes
        many = self.shuffle and int(self.shards_per_stream.min()) >= MANY_SHARDS
        return 64 if many or self.shuffle_algo in ("py1s", "py2s") else 1  # Streaming's rule for one node

    def _weigh_streams(self, epoch_size: int | str | None) -> None:
        size = number_abbrev_to_int(epoch_size) if epoch_size else None
        refused, weigh = "epoch_size, repeat and choose of the streams make too long an epoch", Stream.apply_weights
        with np.errstate(invalid="ignore"):  # of an epoch without samples, which has a message below
            given = self.streams, self.samples_per_stream, size, self.shuffle_seed
            self.epoch_size = ask_upstream(refused, (OverflowError,), weigh, *given)
        if not self.epoch_size:
            raise ConfigError("repeat and choose of the streams leave an epoch without samples; raise one of them")

    def locate(self, sample_ids: Any) -> tuple[Any, Any]:
        """The shard of each sample and its place in the shard, both of the shape of `sample_ids`; int64."""
        shard_ids = np.searchsorted(self.shard_ends, sample_ids, side="right")
        return shard_ids, sample_ids - self.sample_offset_per_shard[shard_ids]

    def values(self, sample_id: int) -> Iterator[tuple[Column, Any]]:
        """What a sample holds by column; an UndecodableError where a value cannot be decoded."""
        shard_id, index = map(int, self.locate(sample_id))
        return decode(self.shards.kinds[self.shards.kind[shard_id]], self.reader.sample(shard_id, index))

    def get_item(self, sample_id: int) -> dict[str, Any]:
        """The decoded sample: column name to value. Raises DataError for one that cannot be decoded."""
        sample = {}
        for column, value in self.values(sample_id):
            if isinstance(value, UndecodableError):
                raise DataError(f"{self.name_of(sample_id)}: {value}") from value.__cause__
            sample[column.name] = value
        return sample

    def kinds(self) -> Iterator[tuple[str, Kind]]:
        """Columns, format and compression of all shards, each sort once, with the stream's name."""
        for stream, kind in zip(self.shards.stream_of_kind, self.shards.kinds, strict=True):
            yield self.stream_names[stream], kind

    def name_of(self, sample_id: int) -> str:
        """The sample as messages call it: its stream, its shard, its number in the stream."""
        shard_id = int(self.locate(sample_id)[0])
        stream = int(self.stream_per_shard[shard_id])
        number = int(sample_id - self.sample_offset_per_stream[stream])
        return f"stream {self.stream_names[stream]!r}, {self.shards[shard_id].raw.basename}, sample {number}"

    def order(self, batch_size: int) -> EpochOrder:
        """The order in which one rank with this batch size gets the samples of each epoch from Streaming."""
        offsets, indexes = self.sample_offset_per_stream, self.shards.indexes
        streams = tuple(
            StreamPart(name, index.samples, int(offset), int(stream.choose), float(stream.proportion))
            for name, index, offset, stream in zip(self.stream_names, indexes, offsets, self.streams, strict=True)
        )
        return EpochOrder(
            streams=streams,
            batching_method=self.batching_method,
            batch=batch_size,
            canonical_nodes=self.num_canonical_nodes,
            balanced=self.sampling_method == "balanced",
            granularity=self.sampling_granularity,
            shuffle=self.shuffle_algo if self.shuffle else None,
            seed=self.shuffle_seed,
            block=self.shuffle_block_size,
        )


def _stream(name: str, config: dict[str, Any]) -> Stream:
    """Streaming's Stream of a config's. Raises ConfigError for a remote that it does not know."""
    try:
        stream = Stream(**config)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"stream {name!r}: {error}") from error
    stream.apply_default(DEFAULTS)
    return stream


def _source(place: Place, stream: Stream) -> Source:
    return Source(
        name=place.stream,
        folder=Path(place.cache or place.data or ""),
        remote=os.path.join(stream.remote, stream.split).rstrip("/") if place.cache else None,
        attempts=1 + stream.download_retry,
        timeout=stream.download_timeout,
        patience=settings().patience,
        validate_hash=stream.validate_hash,
        keep_zip=stream.safe_keep_zip,
        downloader=asking_once(stream._downloader),
    )


def _check_known(kind: Kind, source: Source) -> None:
    """Raises DataError for names in an index, or a hash asked for, that this release of Streaming does not know."""
    where = f"{source.folder / INDEX}: stream {source.name!r}"
    for column in kind.columns:
        try:
            size = size_of_encoding(kind, column)
        except Exception as error:  # KeyError, ValueError, AssertionError, AttributeError: whatever its parser meets
            raise DataError(
                f"{where}: column {column.name!r} has the encoding {column.encoding!r}, which this release of Streaming"
                " does not know"
            ) from error
        if size is not None and column.size not in (size, None):
            raise DataError(
                f"{where}: column {column.name!r} has {column.size} bytes a sample, but its encoding"
                f" {column.encoding!r} takes {size}; the index is damaged"
            )
    if kind.compression is not None and not is_compression(kind.compression):
        raise DataError(
            f"{where}: its shards have the compression {kind.compression!r}, which this release of Streaming does not"
            " know"
        )
    if source.validate_hash and not known_hashes([source.validate_hash]):
        raise DataError(f"validate_hash: {source.validate_hash!r} is no hash that this release of Streaming knows")


def _as_known(sources: list[Source], indexes: list[Index]) -> list[Index]:
    """The shards that the checkpoint knew, where others have been appended; all of one that was rewritten or is new."""
    known = settings().known
    if known is None or len(known.streams) > len(indexes):
        return indexes
    parts = []
    for source, index, stream in zip(sources, indexes, known.streams, strict=False):
        part = index.part_with(stream.content, stream.shards)
        parts.append(index if part is None else part)
        if len(parts[-1]) < len(index) and os.environ.get("RANK", "0") == "0":
            logger.warning(
                f"stream {source.name!r}: {len(index) - len(parts[-1])} shards have been appended since the checkpoint;"
                f" the job goes on with the {len(parts[-1])} that it knew (--mosaic.allow_data_change takes in the new"
                " ones)"
            )
    return parts + indexes[len(parts) :]
