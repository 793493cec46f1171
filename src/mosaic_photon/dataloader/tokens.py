"""Batches of pre-tokenized text, as llm-foundry's text loader makes them, read straight from the shard files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mosaic_photon.dataloader.shards.index import DataError
from mosaic_photon.dataloader.shards.reader import TokenColumn, token_column
from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    from mosaic_photon.dataloader.dataset import ShardedDataset

IGNORED = -100
MicroBatch = tuple[dict[str, torch.Tensor], torch.Tensor]

# Shapes: B samples of the micro-batch, S training.seq_len, W tokens taken of a sample (S or S + 1).


@dataclass(frozen=True)
class Window:
    """How many tokens a sample gives: S + 1 for S shifted targets, or S with the last target ignored."""

    seq_len: int
    width: int
    setting: str = "training.seq_len"
    """What the job calls S."""
    multiple: int = 1
    """What the job's S must be a multiple of."""

    @classmethod
    def of(cls, max_seq_len: int | None, seq_len: int, where: str, setting: str = setting, multiple: int = 1) -> Window:
        """From the dataset's max_seq_len (None: S + 1) and the job's seq_len. Raises ConfigError if they don't fit."""
        width = seq_len + 1 if max_seq_len is None else max_seq_len
        if width not in (seq_len, seq_len + 1):
            raise ConfigError(
                f"{where}.max_seq_len: {max_seq_len} does not fit {setting} {seq_len}: leave it out or set"
                f" {seq_len + 1} for {seq_len} targets, or {seq_len} for llm-foundry's meaning (last label ignored)"
            )
        return cls(seq_len, width, setting, multiple)

    def advice(self, length: int) -> str:
        """What the job can set, for samples of `length` tokens that are too short for it."""
        targets, positions = ((n // self.multiple) * self.multiple for n in (length - 1, length))
        kept = [f"{self.setting} = {targets}"] if targets else []
        kept += [f"max_seq_len = {self.setting} = {positions}"] if positions > targets else []
        return f"set {', or '.join(kept)}" if kept else "give longer samples"

    def batch(self, ids_BW: NDArray[np.integer], labels_BW: NDArray[np.integer], fill: int = 0) -> MicroBatch:
        """TorchTitan's int64 batch from unshifted ids and labels; narrow ones are filled up with ignored positions."""
        rows, width = ids_BW.shape
        inputs_BS = np.empty((rows, self.seq_len), np.int64)
        shifted_BS = np.empty((rows, self.seq_len), np.int64)
        targets = min(width, self.width) - 1
        inputs_BS[:, :width] = ids_BW[:, : self.seq_len]
        shifted_BS[:, :targets] = labels_BW[:, 1 : targets + 1]
        if targets < self.seq_len:
            inputs_BS[:, width:] = fill
            shifted_BS[:, targets:] = IGNORED
        return {"input": torch.from_numpy(inputs_BS)}, torch.from_numpy(shifted_BS)


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
        self.encoding = np.dtype(encoding)
        columns = set()
        for stream, kind in dataset.kinds():
            column = token_column(kind.columns, encoding, f"stream {stream!r}")
            assert column is not None
            self._check_length(column, stream)
            columns.add(column)
        column = columns.pop()
        self.fixed = column if not columns and column.length is not None else None
        """Where the tokens of all samples are, if all shards have as many in one place."""

    def __call__(self, sample_ids: NDArray[np.int64]) -> MicroBatch:
        """The micro-batch of these samples; an id of -1 gives a row of ignored labels."""
        shard_ids, indexes = self.dataset.locate(sample_ids)
        ids_BW: NDArray[np.integer]
        labels_BW: NDArray[np.integer]
        if self.fixed is None or sample_ids[-1] < 0:
            ids_BW, labels_BW = self._ragged(sample_ids)
        else:
            ids_BW = labels_BW = self._read_rows(self.fixed, shard_ids, indexes)
        check_vocabulary(self.dataset, ids_BW, sample_ids, self.vocab_size)
        return self.window.batch(ids_BW, self._ignore_padding(labels_BW), self.pad_id or 0)

    def _read_rows(
        self, column: TokenColumn, shard_ids: NDArray[np.int64], indexes: NDArray[np.int64]
    ) -> NDArray[np.integer]:
        """Rows of tokens of one size, each read straight into its place."""
        rows_BW = np.empty((len(indexes), self.window.width), column.dtype)
        shard_of = self.dataset.reader.shard
        for row, shard_id, index in zip(rows_BW, shard_ids.tolist(), indexes.tolist(), strict=True):
            shard = shard_of(shard_id)
            begin = int(shard.offsets[index]) + column.offset
            if os.preadv(shard.file.fileno(), [row], begin) < row.nbytes:
                raise self.dataset.reader.damaged(shard_id, "shrank while it was read")
        return rows_BW

    def _ragged(self, sample_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids and labels of samples of any length, filled up to the longest."""
        rows = [
            self._decoded(sample_id)[: self.window.width] if sample_id >= 0 else np.zeros(0, np.int64)
            for sample_id in sample_ids.tolist()
        ]
        width = max(map(len, rows)) or self.window.width
        ids_BW = np.full((len(rows), width), self.pad_id or 0, np.int64)
        labels_BW = np.full((len(rows), width), IGNORED, np.int64)
        for number, row in enumerate(rows):
            if self.pad_id is None and 0 < len(row) < width:
                raise ConfigError(
                    f"{self.dataset.name_of(int(sample_ids[number]))}: samples have different lengths ({len(row)} and"
                    f" {width} tokens) and there is no pad token to fill them up with; name a tokenizer with pad_token"
                    " in its tokenizer_config.json"
                )
            ids_BW[number, : len(row)] = labels_BW[number, : len(row)] = row
        return ids_BW, labels_BW

    def tokens(self, sample_id: int) -> NDArray[np.integer]:
        """What is taken of a sample, without the pad tokens behind it."""
        tokens = self._decoded(sample_id)[: self.window.width]
        return tokens[: length_without(self.pad_id, tokens)]

    def length(self, sample_id: int) -> int:
        """How many tokens these are."""
        return len(self.tokens(sample_id))

    def _decoded(self, sample_id: int) -> NDArray[np.integer]:
        tokens = self.dataset.get_item(sample_id)["tokens"]
        if isinstance(tokens, np.ndarray):
            if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
                found = f"{tokens.dtype.name} of shape {tokens.shape}"
                raise DataError(f"{self.dataset.name_of(sample_id)}: its tokens are {found}, not a row of token ids")
            return tokens
        if fault := fault_of_bytes(tokens, self.encoding, self.vocab_size):
            raise DataError(f"{self.dataset.name_of(sample_id)}: {fault}")
        return np.frombuffer(tokens, self.encoding)

    def _ignore_padding(self, labels_BW: NDArray[np.integer]) -> NDArray[np.integer]:
        """The labels with -100 where they are the pad token; a copy only if there are any."""
        if self.pad_id is None:
            return labels_BW
        is_pad = labels_BW == self.pad_id
        return np.where(is_pad, IGNORED, labels_BW.astype(np.int64)) if is_pad.any() else labels_BW

    def _check_length(self, column: TokenColumn, stream: str) -> None:
        if column.length is not None and column.length < self.window.width:
            raise ConfigError(
                f"stream {stream!r}: its samples have {column.length} tokens, but {self.window.setting}"
                f" {self.window.seq_len} takes {self.window.width}; {self.window.advice(column.length)}"
            )


def check_vocabulary(dataset: ShardedDataset, ids_BW: NDArray[np.integer], sample_ids: Any, vocab_size: int) -> None:
    """Raise DataError for the first token id that is none of the tokenizer's; `sample_ids` are those of the rows."""
    unsigned = ids_BW.view(f"u{ids_BW.itemsize}")  # a negative id is a huge one: one pass finds both
    if unsigned.max() >= vocab_size:
        row, at = np.argwhere(unsigned >= vocab_size)[0].tolist()
        raise DataError(
            f"token id {ids_BW[row, at]} is outside the vocabulary of {vocab_size} tokens; the data was made with"
            " another tokenizer or, if stored as bytes, is not of token_encoding_type"
            f" ({dataset.name_of(int(sample_ids[row]))})"
        )


def length_without(pad_id: int | None, ids: NDArray[np.integer]) -> int:
    """How many ids there are up to the last that is no padding."""
    kept = np.flatnonzero(ids != pad_id) if pad_id is not None else np.arange(len(ids))
    return int(kept[-1]) + 1 if len(kept) else 0


ANY_VOCABULARY = 1 << 24
"""Token ids are below this, whatever the tokenizer."""
BYTE_TYPES = ("int64", "int32", "uint16", "uint8")
LOOKS_WIDER = 16
"""Ids that fit a wider type, each with zeros for the rest of its bytes, before the type is taken for the narrower."""


def fault_of_bytes(data: bytes, dtype: np.dtype[Any], vocab_size: int) -> str:
    """Why token ids stored as bytes are not of this type, with the type that they are of; "" if they may be.

    Ids of a wider type, read as a narrower one, are ids with zeros between them: nothing else would notice. A type that
    the vocabulary does not fit in is never proposed, as any bytes are ids of it; ids of another tokenizer are no fault
    of the type.
    """
    known = vocab_size < ANY_VOCABULARY  # else small ids of a narrow type, two read as one, look like ids of a wide one
    wide_enough = [name for name in BYTE_TYPES if known and np.iinfo(name).max >= vocab_size - 1]
    fits = [name for name in wide_enough if are_ids(data, np.dtype(name), vocab_size)]
    wider = [name for name in fits if np.dtype(name).itemsize > dtype.itemsize]
    if len(data) % dtype.itemsize:
        fault = f"are {len(data)}, no whole number of ids of {dtype.itemsize} bytes"
    elif wider and np.count_nonzero(np.frombuffer(data, wider[0])) >= LOOKS_WIDER:
        fault = f"have zeros for every other id, as ids of {wider[0]} have"
    elif fits and not are_ids(data, dtype, vocab_size if dtype.itemsize < 4 else ANY_VOCABULARY):
        fault = f"hold ids outside the vocabulary of {vocab_size} tokens"
    else:
        return ""
    right = f"set token_encoding_type = {fits[0]!r}, as which they are ids" if fits else "set the type they have"
    return f"its tokens are stored as bytes that are not token_encoding_type = {dtype.name!r}: they {fault}; {right}"


def are_ids(data: bytes, dtype: np.dtype[Any], vocab_size: int) -> bool:
    """Whether bytes, some at least, may be token ids of this type."""
    if not data or len(data) % dtype.itemsize:
        return False
    ids = np.frombuffer(data, dtype)
    return bool(ids.min() >= 0 and ids.max() < vocab_size)
