"""The work cut into parts, each of which is done alone, and again if need be: its record decides what it makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mosaic_photon.prepare.sources import Piece, TextSource, cut

PART_BYTES = (1 << 20, 32 << 20)  # least and most source bytes that are kept or lost at once
PART_FILES = 512
"""At most: it bounds what a part's record takes, and how long small objects of a store take to fetch."""
RANGES = ("text", "jsonl", "parquet")


def parts_of(sources: Iterable[TextSource], total: int, cuttable: bool) -> Iterator[list[Piece]]:
    """Pieces in order, grouped into parts of about a 64th of the whole, within PART_BYTES.

    Args:
        total: bytes of all sources.
        cuttable: whether a text may be tokenized in parts.
    """
    low, high = PART_BYTES
    target = min(max(total // 64, low), high)
    part: list[Piece] = []
    size = 0
    for source in sources:
        for piece in cut(source, cuttable):
            if part and (size >= target or len(part) == PART_FILES):
                yield part
                part, size = [], 0
            size += piece.size
            if part and _goes_on(part[-1], piece):
                part[-1] = replace(part[-1], stop=piece.stop, size=part[-1].size + piece.size)
            else:
                part.append(piece)
    yield part


def _goes_on(before: Piece, piece: Piece) -> bool:
    return piece.kind in RANGES and piece.path == before.path and piece.start == before.stop
