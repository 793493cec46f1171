"""Batches of pre-tokenized text, as llm-foundry's text loader makes them, read straight from the shard files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from mosaic_photon.dataloader.index import DataError
from mosaic_photon.dataloader.reader import TokenColumn, token_column
from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    from mosaic_photon.dataloader.dataset import ShardedDataset

IGNORED = -100
Batch = tuple[dict[str, torch.Tensor], torch.Tensor]

# Shapes: B samples of the micro-batch, S training.seq_len, W tokens taken of a sample (S or S + 1).


@dataclass(frozen=True)
class Window:
    """How many tokens a sample gives: S + 1 for S shifted targets, or S with the last target ignored."""

    seq_len: int
    width: int

    @classmethod
    def of(cls, max_seq_len: int | None, seq_len: int, where: str) -> Window:
        """From the dataset's max_seq_len (None: S + 1) and the job's seq_len. Raises ConfigError if they don't fit."""
        width = seq_len + 1 if max_seq_len is None else max_seq_len
        if width not in (seq_len, seq_len + 1):
            raise ConfigError(
                f"{where}.max_seq_len: {max_seq_len} does not fit training.seq_len {seq_len}: leave it out or set"
                f" {seq_len + 1} for {seq_len} targets, or {seq_len} for llm-foundry's meaning (last label ignored)"
            )
        return cls(seq_len, width)

    def batch(self, ids_BW: torch.Tensor, labels_BW: torch.Tensor, fill: int = 0) -> Batch:
        """TorchTitan's batch from unshifted int64 ids and labels; narrow ones are filled up with ignored positions."""
        missing = self.width - ids_BW.shape[1]
        if missing > 0:
            ids_BW = torch.nn.functional.pad(ids_BW, (0, missing), value=fill)
            labels_BW = torch.nn.functional.pad(labels_BW, (0, missing), value=IGNORED)
        if self.width == self.seq_len:
            shifted_BS = torch.nn.functional.pad(labels_BW[:, 1:], (0, 1), value=IGNORED)
        else:
            shifted_BS = labels_BW[:, 1:].contiguous()
        return {"input": ids_BW[:, : self.seq_len].contiguous()}, shifted_BS


class TokenBatches:
    """Makes the micro-batch of given sample ids; equal, bit for bit, to llm-foundry's dataset and collator.

    llm-foundry cuts a sample at max_seq_len, fills the samples of a batch up to the longest with the pad token, and
    ignores labels that equal the pad token. Without a pad token, samples of different lengths are an error there too.
    """

    def __init__(
        self, dataset: ShardedDataset, window: Window, pad_id: int | None, vocab_size: int, encoding: str
    ) -> None:
        """`pad_id` and `vocab_size` are the tokenizer's; `encoding` is the dtype of tokens stored as bytes."""
        self.dataset, self.window, self.pad_id, self.vocab_size = dataset, window, pad_id, vocab_size
        known: dict[tuple[object, ...], TokenColumn] = {}
        self.columns: list[TokenColumn] = []
        for shard, source in zip(dataset.shards, dataset.cache.source_of, strict=True):
            if shard.columns not in known:
                column = token_column(shard.columns, encoding, f"stream {source.name!r}")
                assert column is not None
                self._check_length(column, source.name)
                known[shard.columns] = column
            self.columns.append(known[shard.columns])

    def __call__(self, sample_ids: NDArray[np.int64]) -> Batch:
        """The micro-batch of these samples; an id of -1 gives a row of ignored labels."""
        rows = self._rows(sample_ids)
        ids_BW, full = self._fill_up(rows)
        self._check_vocabulary(ids_BW, sample_ids)
        ids = torch.from_numpy(ids_BW)
        labels = ids.clone()
        if self.pad_id is not None:
            labels[ids == self.pad_id] = IGNORED
        if not full:
            for row, tokens in enumerate(rows):
                labels[row, len(tokens) :] = IGNORED
        return self.window.batch(ids, labels, self.pad_id or 0)

    def _rows(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.integer]]:
        shard_ids, indexes = self.dataset.locate(sample_ids)
        empty = np.zeros(0, np.int64)
        return [
            self._tokens(shard_id, index) if sample_id >= 0 else empty
            for sample_id, shard_id, index in zip(
                sample_ids.tolist(), shard_ids.tolist(), indexes.tolist(), strict=True
            )
        ]

    def _tokens(self, shard_id: int, index: int) -> NDArray[np.integer]:
        column = self.columns[shard_id]
        reader = self.dataset.reader
        if column.length is None:
            tokens = self._decoded(shard_id, index, column)
        else:
            shard = reader.shard(shard_id)
            begin, end = int(shard.offsets[index]) + column.offset, int(shard.offsets[index + 1])
            size = min(self.window.width, column.length) * column.dtype.itemsize
            data = shard.read(begin, size)
            if len(data) < size or begin + size > end:
                raise DataError(f"shard {shard_id}, sample {index}: shorter than its {column.length} tokens")
            return np.frombuffer(data, column.dtype)
        return tokens[: self.window.width]

    def _decoded(self, shard_id: int, index: int, column: TokenColumn) -> NDArray[np.integer]:
        from mosaic_photon.dataloader.dataset import decode_sample

        data = self.dataset.reader.sample(shard_id, index)
        tokens = decode_sample(self.dataset.shards[shard_id].columns, data)["tokens"]
        return np.frombuffer(tokens, column.dtype) if isinstance(tokens, bytes) else tokens

    def _fill_up(self, rows: list[NDArray[np.integer]]) -> tuple[NDArray[np.int64], bool]:
        """One int64 array of all rows, and whether all have its width."""
        lengths = [len(row) for row in rows]
        width = max(lengths) or self.window.width
        ids_BW = np.empty((len(rows), width), np.int64)
        for out, row, length in zip(ids_BW, rows, lengths, strict=True):
            out[:length] = row
            if length < width:
                if self.pad_id is None and length:
                    raise ConfigError(
                        f"samples have different lengths ({length} and {width} tokens) and the tokenizer has no pad"
                        " token to fill them up with; add pad_token to its tokenizer_config.json"
                    )
                out[length:] = self.pad_id or 0
        return ids_BW, min(lengths) == width

    def _check_length(self, column: TokenColumn, stream: str) -> None:
        if column.length is not None and column.length < self.window.width:
            meaning = f"max_seq_len = training.seq_len = {column.length}" if column.length > 1 else "longer samples"
            raise ConfigError(
                f"stream {stream!r}: its samples have {column.length} tokens, but training.seq_len"
                f" {self.window.seq_len} takes {self.window.width}; set training.seq_len = {column.length - 1},"
                f" or {meaning}"
            )

    def _check_vocabulary(self, ids_BW: NDArray[np.int64], sample_ids: NDArray[np.int64]) -> None:
        low, high = int(ids_BW.min()), int(ids_BW.max())
        if low < 0 or high >= self.vocab_size:
            row = int(np.argmax((ids_BW.min(1) < 0) | (ids_BW.max(1) >= self.vocab_size)))
            shard_ids, _ = self.dataset.locate(sample_ids[row : row + 1])
            source = self.dataset.cache.source_of[int(shard_ids[0])]
            raise DataError(
                f"stream {source.name!r}: token id {low if low < 0 else high} is outside the vocabulary of"
                f" {self.vocab_size} tokens; the data was made with another tokenizer (sample {sample_ids[row]})"
            )
