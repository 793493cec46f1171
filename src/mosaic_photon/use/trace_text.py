"""Where a text stands in a run's data, whatever tokens spell it there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.tokens import TokenBatches
from mosaic_photon.prepare.pool import Processes
from mosaic_photon.token_bytes import BYTE_TOKEN, WORD_MARK
from mosaic_photon.tokenizers import vocabulary_size
from mosaic_photon.use.trace import Run

ROWS = 4096
"""Samples that are looked through together."""
LONGEST = 63
"""Bytes of a text that are looked for at first: states are bits of a uint64."""
FEW_SHARDS = 4
"""So many are searched in this process."""
NO_CHARACTER = "\ufffd"
"""What decoding writes for bytes that make no character."""
PUT_TOGETHER = {"Sequence", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
"""Decoders of SentencePiece's kind: what they make of tokens is, but for a first space, what each stands for."""


def find_text(run: Run, text: str, advance: Callable[[int], object]) -> list[int]:
    """The ids of all samples with this text in what the job takes of them, ascending.

    Args:
        run: open; shards that are not here are fetched.
        text: found within one sample only.
        advance: told the samples that have been looked through.
    """
    search = Search(run, text)
    shards = len(run.dataset.shards)
    sizes = run.dataset.samples_per_shard
    found: dict[int, list[int]] = {}

    def finished(shard: int, samples: list[int]) -> None:
        found[shard] = samples
        advance(int(sizes[shard]))

    if shards <= FEW_SHARDS:
        for shard in range(shards):
            finished(shard, search.shard(shard))
    else:
        run.data.close()  # connections cannot be shared with forked processes
        _searches.append(search)
        workers = min(shards, len(os.sched_getaffinity(0)))
        Processes(workers).run(_search_shard, ((shard,) for shard in range(shards)), finished)
        _searches.clear()
    return [sample for shard in sorted(found) for sample in found[shard]]


_searches: list[Search] = []
"""The one that forked workers take part in."""


def _search_shard(shard: int) -> list[int]:
    return _searches[0].shard(shard)


class Search:
    """One text, to be looked for shard by shard."""

    def __init__(self, run: Run, text: str) -> None:
        self.run, self.text = run, text
        by_bytes = isinstance(run.data.make_batch, TokenBatches) and NO_CHARACTER not in text
        pieces = pieces_of(run.tokenizer) if by_bytes else None
        self.maybe = None if pieces is None else Matcher(text.encode()[:LONGEST], pieces)

    def shard(self, shard_id: int) -> list[int]:
        """The ids of a shard's samples with the text."""
        first = int(self.run.dataset.sample_offset_per_shard[shard_id])
        end = first + int(self.run.dataset.samples_per_shard[shard_id])
        found = []
        for begin in range(first, end, ROWS):
            ids = range(begin, min(begin + ROWS, end))
            found += [sample for sample in self._candidates(ids) if self.text in self.run.read(sample)[1]]
        return found

    def _candidates(self, ids: range) -> list[int]:
        batches = self.run.data.make_batch
        if self.maybe is None or not isinstance(batches, TokenBatches):
            return list(ids)
        rows = [batches.tokens(sample) for sample in ids]
        tokens = np.full((len(rows), max(map(len, rows))), self.maybe.nothing, np.int64)
        for row, own in zip(tokens, rows, strict=True):
            row[: len(own)] = own
        return (np.flatnonzero(self.maybe.hits(tokens)) + ids[0]).tolist()


class Matcher:
    """Finds a text in rows of tokens by what each token stands for.

    Going through a row, bit n of its state says that what was read ends with the text's first n bytes. Bit 0 is always
    set.
    """

    def __init__(self, text: bytes, pieces: Sequence[bytes]) -> None:
        """`text` has at most 63 bytes."""
        self.nothing = len(pieces)
        """An id that stands for nothing; others may be outside the vocabulary."""
        self._within, self._begins, self._ends, self._shift = np.zeros((4, len(pieces) + 1), np.uint64)
        self._begins |= np.uint64(1)
        self._within[-1] = ~np.uint64(0)
        for token, piece in enumerate(pieces):
            size, first = len(piece), max(0, len(text) - len(piece))
            within = [n for n in range(first) if text.startswith(piece, n)]
            begins = [n for n in range(1, min(size, len(text))) if piece.endswith(text[:n])]
            ends = [n for n in range(first, len(text)) if piece.startswith(text[n:])]
            self._within[token] = _bits(within)
            self._begins[token] |= _bits(begins)
            self._ends[token] = _bits([*ends, *([0] if text in piece else [])])
            self._shift[token] = size if within else 0

    def hits(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows of tokens [rows, S] have the text; shape (rows,)."""
        tokens = np.where((tokens < 0) | (tokens > self.nothing), self.nothing, tokens)
        state, found = np.ones(len(tokens), np.uint64), np.zeros(len(tokens), bool)
        for column in np.ascontiguousarray(tokens.T):
            found |= (state & self._ends[column]) != 0
            state = ((state & self._within[column]) << self._shift[column]) | self._begins[column]
        return found


def _bits(numbers: Sequence[int]) -> np.uint64:
    return np.uint64(sum(1 << number for number in set(numbers)))


def pieces_of(tokenizer: Any) -> list[bytes] | None:
    """What each token stands for in a decoded text, by its id; None where decoding is more than putting these together.

    Args:
        tokenizer: of the tokenizers library.
    """
    decoder = json.loads(tokenizer.to_str())["decoder"]
    kinds = {part["type"] for part in [decoder, *(decoder or {}).get("decoders", ())] if part}
    if kinds == {"ByteLevel"}:
        byte_of = _byte_level()
    elif kinds and kinds <= PUT_TOGETHER:
        byte_of = {}
    else:
        return None
    pieces = [b""] * vocabulary_size(tokenizer)
    for text, number in tokenizer.get_vocab().items():
        if byte_of:
            known = all(character in byte_of for character in text)
            pieces[number] = bytes(byte_of[character] for character in text) if known else text.encode()
        elif BYTE_TOKEN.fullmatch(text):
            pieces[number] = bytes([int(text[3:5], 16)])
        else:
            pieces[number] = text.replace(WORD_MARK, " ").encode()
    return pieces


def _byte_level() -> dict[str, int]:
    """GPT-2's alphabet: bytes that are printable characters are these, the others are those from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
