"""Streaming's dataset without its shared memory: the same samples in the same order, read by sample id.

StreamingDataset learns who it is from the environment, which is wrong in layouts with pipeline parallelism
(mosaicml/streaming#827, #854), and coordinates through /dev/shm segments that a killed job leaves behind. This subclass
keeps Streaming's sampling, shuffling and partitioning, and replaces the rest.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.compat import streaming_lazy_package
from mosaic_photon.compat.streaming_s3_retries import asking_once
from mosaic_photon.dataloader.order.epoch import EpochOrder, StreamPart
from mosaic_photon.dataloader.shards.cache import ShardCache
from mosaic_photon.dataloader.shards.cache_folder import open_source
from mosaic_photon.dataloader.shards.fetch import Source
from mosaic_photon.dataloader.shards.files import known_hashes
from mosaic_photon.dataloader.shards.formats import UndecodableError, decode, size_of_encoding
from mosaic_photon.dataloader.shards.index import INDEX, DataError, Kind
from mosaic_photon.dataloader.shards.reader import ShardReader
from mosaic_photon.dataloader.shards.settings import KnownStream, settings
from mosaic_photon.dataloader.shards.table import Index
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.data_config import STREAMING_KEYS, streams_of
from mosaic_photon.places import check_apart, place_of

streaming_lazy_package.install()

from streaming.base.compression import is_compression  # noqa: E402
from streaming.base.dataset import StreamingDataset  # noqa: E402
from streaming.base.stream import Stream  # noqa: E402
from streaming.base.util import bytes_to_int, number_abbrev_to_int  # noqa: E402
from streaming.base.world import World  # noqa: E402

ONE_RANK = World(num_nodes=1, ranks_per_node=1, workers_per_rank=1, worker=0)
SIGNATURE = inspect.signature(StreamingDataset.__init__)
MANY_SHARDS = 512
"""With this many in each stream, 64 canonical nodes cost nothing, and let up to 64 nodes read a part each."""

logger = logging.getLogger(__name__)


class ShardedDataset(StreamingDataset):
    """A StreamingDataset of StreamingDataset's arguments that any process may read by sample id, in any order.

    Has the attributes that Streaming's `generate_work` needs.
    """

    def __init__(self, names: Sequence[str] = (), **kwargs: Any) -> None:
        """Fetches the indexes. Raises DataError for data that can't be used, ConfigError for wrong settings.

        `names` are the streams', where those who build them have no place for it.
        """
        bound = SIGNATURE.bind(self, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for name in arguments.keys() - _ELSEWHERE:
            setattr(self, name, arguments[name])
        self.initial_physical_nodes = None
        self.epoch_seed_change = self.shuffle and self.sampling_method == "balanced"
        self.streams = _streams(arguments)
        for name, stream in zip(names, self.streams, strict=False):
            stream.name = name
        self.num_streams = len(self.streams)
        self._load_shards(arguments["cache_limit"])
        self._weigh_streams(arguments["epoch_size"])
        self.num_canonical_nodes = arguments["num_canonical_nodes"] or self._default_canonical_nodes()
        if arguments["shuffle_block_size"] is None:
            self._set_shuffle_block_size(ONE_RANK)
        else:
            self.shuffle_block_size = int(arguments["shuffle_block_size"])

    def _load_shards(self, cache_limit: int | str | None) -> None:
        sources = [_source(stream, number) for number, stream in enumerate(self.streams)]
        named = enumerate(self.streams)
        check_apart([place_of(_name_of(stream, n), stream.local, stream.remote, stream.split) for n, stream in named])
        opened = [open_source(source, self.allow_unsafe_types) for source in sources]
        sources = [source for source, _ in opened]
        indexes = _as_known(sources, [index for _, index in opened])
        for source, index in zip(sources, indexes, strict=True):
            for kind in index.kinds:
                _check_known(kind, source)
        limit = bytes_to_int(cache_limit) if cache_limit else None
        self.cache = ShardCache(sources, indexes, limit)
        self.shards = self.cache.shards
        self.num_shards = len(self.shards)
        counts = np.array([len(index) for index in indexes], np.int64)
        self.shards_per_stream = counts
        self.shard_offset_per_stream = counts.cumsum() - counts
        self.stream_per_shard = np.repeat(np.arange(self.num_streams), counts)
        self.samples_per_shard = self.shards.samples
        self.shard_ends = self.samples_per_shard.cumsum()
        self.sample_offset_per_shard = self.shard_ends - self.samples_per_shard
        self.samples_per_stream = np.array([index.samples.sum() for index in indexes], np.int64)
        self.sample_offset_per_stream = self.samples_per_stream.cumsum() - self.samples_per_stream
        self.num_samples = int(self.samples_per_stream.sum())
        self.reader = ShardReader(self.cache)

    def _default_canonical_nodes(self) -> int:
        """The checkpoint's number; at the begin one that depends on the data alone, not on the number of nodes."""
        known = settings().known
        if known is not None:
            return known.num_canonical_nodes
        many = self.shuffle and int(self.shards_per_stream.min()) >= MANY_SHARDS
        return 64 if many or self.shuffle_algo in ("py1s", "py2s") else 1  # Streaming's rule for one node

    def _weigh_streams(self, epoch_size: int | str | None) -> None:
        size = number_abbrev_to_int(epoch_size) if epoch_size else None
        with np.errstate(invalid="ignore"):  # of an epoch without samples, which has a message below
            self.epoch_size = Stream.apply_weights(self.streams, self.samples_per_stream, size, self.shuffle_seed)
        if not self.epoch_size:
            raise ConfigError("repeat and choose of the streams leave an epoch without samples; raise one of them")
        self.length = self.epoch_size

    def locate(self, sample_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shard of each sample and its place in the shard, both of the shape of `sample_ids`."""
        shard_ids = np.searchsorted(self.shard_ends, sample_ids, side="right")
        return shard_ids, sample_ids - self.sample_offset_per_shard[shard_ids]

    def get_item(self, sample_id: int, retry: int = 0) -> dict[str, Any]:
        """The decoded sample: column name to value. Raises DataError for one that cannot be decoded."""
        shard_id = int(np.searchsorted(self.shard_ends, sample_id, side="right"))
        data = self.reader.sample(shard_id, int(sample_id - self.sample_offset_per_shard[shard_id]))
        sample = {}
        for column, value in decode(self.kind_of(shard_id), data):
            if isinstance(value, UndecodableError):
                raise DataError(f"{self.name_of(sample_id)}: {value}") from value.__cause__
            sample[column.name] = value
        return sample

    def kind_of(self, shard_id: int) -> Kind:
        """The shard's columns, format and compression."""
        return self.shards.kinds[self.shards.kind[shard_id]]

    def name_of(self, sample_id: int) -> str:
        """The sample as messages call it: its stream, its shard, its number in the stream."""
        shard_id = int(np.searchsorted(self.shard_ends, sample_id, side="right"))
        stream = int(self.stream_per_shard[shard_id])
        number = int(sample_id - self.sample_offset_per_stream[stream])
        return f"stream {self.stream_names()[stream]!r}, {self.shards[shard_id].raw.basename}, sample {number}"

    def stream_names(self) -> list[str]:
        """The streams' names in the data config."""
        return [source.name for source in self.cache.sources]

    def order(self, batch_size: int) -> EpochOrder:
        """The order in which one rank with this batch size gets the samples of each epoch from Streaming."""
        offsets, indexes = self.sample_offset_per_stream, self.shards.indexes
        streams = tuple(
            StreamPart(name, index.samples, int(offset), int(stream.choose), float(stream.proportion))
            for name, index, offset, stream in zip(self.stream_names(), indexes, offsets, self.streams, strict=True)
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

    def __del__(self) -> None:
        """Nothing to release: StreamingDataset's destructor is for shared memory."""


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


def dataset_of(config: dict[str, Any]) -> ShardedDataset:
    """The dataset of a data config's `dataset` table, its folders settled."""
    arguments = {key: value for key, value in config.items() if key in _FROM_CONFIG and value is not None}
    return ShardedDataset(streams=build_streams(streams_of(config)), **arguments)


def build_streams(streams: dict[str, dict[str, Any]]) -> list[Stream]:
    """Streaming's Stream for each stream of a config. Raises ConfigError for a remote that it does not know."""
    built = []
    for name, stream in streams.items():
        try:
            built.append(Stream(**stream))
        except (ValueError, ImportError) as error:
            raise ConfigError(f"stream {name!r}: {error}") from error
        built[-1].name = name
    return built


_FROM_CONFIG = STREAMING_KEYS - {"streams", "remote", "local", "batch_size", "replication", "stream_config"}
_STREAM_DEFAULTS = ("remote", "local", "split", "download_retry", "download_timeout", "validate_hash", "keep_zip")
_ELSEWHERE = {"self", "streams", "epoch_size", "stream_name", "stream_config", *_STREAM_DEFAULTS}


def _streams(arguments: dict[str, Any]) -> list[Stream]:
    defaults = {name: arguments[name] for name in _STREAM_DEFAULTS}
    streams = list(arguments["streams"] or [Stream(remote=defaults["remote"], local=defaults["local"])])
    for stream in streams:
        stream.apply_default(defaults)
    return streams


def _name_of(stream: Stream, number: int) -> str:
    return getattr(stream, "name", str(number))


def _as_known(sources: list[Source], indexes: list[Index]) -> list[Index]:
    """The shards that the checkpoint knew, where others have been appended; all of a stream that was rewritten."""
    known = settings().known
    if known is None or len(known.streams) != len(indexes):
        return indexes
    parts = zip(sources, indexes, known.streams, strict=True)
    return [_known_part(source, index, stream) for source, index, stream in parts]


def _known_part(source: Source, index: Index, known: KnownStream) -> Index:
    part = index.part_with(known.content, known.shards)
    if part is None or len(part) == len(index):
        return index
    if os.environ.get("RANK", "0") == "0":
        logger.warning(
            f"stream {source.name!r}: {len(index) - len(part)} shards have been appended since the checkpoint; the job"
            f" goes on with the {len(part)} that it knew (--mosaic.allow_data_change takes in the new ones)"
        )
    return part


def _source(stream: Stream, number: int) -> Source:
    place = place_of(_name_of(stream, number), stream.local, stream.remote, stream.split)
    remote = os.path.join(stream.remote, stream.split).rstrip("/") if place.cache else None
    return Source(
        name=place.stream,
        folder=Path(place.cache or place.data or ""),
        remote=remote,
        attempts=1 + stream.download_retry,
        timeout=stream.download_timeout,
        patience=settings().patience,
        validate_hash=stream.validate_hash,
        keep_zip=stream.safe_keep_zip,
        downloader=asking_once(stream._downloader),
    )
