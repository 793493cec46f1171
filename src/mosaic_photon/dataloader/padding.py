"""How many tokens an epoch holds and how much of its positions is padding, estimated from a few samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mosaic_photon.dataloader.loader import BatchedDataset

SAMPLES = 256
"""Read for an estimate, over all streams."""
MUCH = 0.1
"""Share of padding from which it is worth a warning."""


@dataclass(frozen=True)
class StreamTokens:
    """A stream's tokens, estimated from the samples that were read: `read` of the `samples` of an epoch."""

    name: str
    samples: int
    read: int
    mean: float
    """Tokens of a sample that are no padding, at most seq_len; seq_len where none was read."""
    exact: bool
    """Samples are stored with one length, and in those that were read there is no padding."""

    @property
    def tokens(self) -> int:
        """Of an epoch."""
        return round(self.samples * self.mean)

    def __str__(self) -> str:
        about = "" if self.exact else "about " if self.read else "at most "
        return f"{about}{self.tokens:,} tokens"


@dataclass(frozen=True)
class Estimate:
    """Of an epoch."""

    streams: tuple[StreamTokens, ...]
    seq_len: int

    @property
    def padding(self) -> float:
        """Share of the positions that are padding, in the streams of which samples were read."""
        known = [stream for stream in self.streams if stream.read]
        positions = sum(stream.samples for stream in known) * self.seq_len
        return 1 - sum(stream.tokens for stream in known) / positions if positions else 0.0

    @property
    def in_words(self) -> str:
        """The share of padding in words; "" where there is none."""
        if self.padding < 0.005:
            return ""
        read = sum(stream.read for stream in self.streams)
        return f"about {self.padding:.0%} of the positions ({read} samples read)"

    @property
    def warning(self) -> str:
        """A sentence where much is padding."""
        if self.padding < MUCH:
            return ""
        mean = self.seq_len * (1 - self.padding)
        return (
            f"padding is {self.in_words}: samples have {mean:.0f} tokens on average, training.seq_len is"
            f" {self.seq_len}; a smaller seq_len, or documents laid end to end (mosaic-photon prepare), trains on more"
        )


def estimate(data: BatchedDataset, seq_len: int) -> Estimate:
    """Look at SAMPLES samples, spread over the streams' shards that are on this machine."""
    dataset = data.dataset
    streams = []
    for number, (name, stream) in enumerate(zip(dataset.stream_names, dataset.streams, strict=True)):
        first, count = int(dataset.sample_offset_per_stream[number]), int(dataset.samples_per_stream[number])
        wanted = max(1, SAMPLES * int(stream.choose) // max(1, dataset.epoch_size))
        ids = np.unique(np.linspace(first, first + count - 1, wanted, dtype=np.int64)) if count else np.zeros(0, int)
        shard_ids, _ = dataset.locate(ids)
        here = ids[np.array([dataset.cache.is_here(int(shard)) for shard in shard_ids], bool)]
        lengths = np.array([data.length(int(sample)) for sample in here]).clip(max=seq_len)
        mean = float(lengths.mean()) if len(lengths) else float(seq_len)
        exact = data.fixed_length and len(lengths) > 0 and bool((lengths == seq_len).all())
        streams.append(StreamTokens(name, int(stream.choose), len(lengths), mean, exact))
    dataset.reader.close()
    return Estimate(tuple(streams), seq_len)
