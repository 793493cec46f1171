"""Which place of a batch of several streams has which sample, so that nodes go on reading shards of their own.

A stream's pass gives its samples to canonical nodes in turn. Place p of a batch is read by node p mod N, so samples of
canonical node c go to places p with p = c modulo the greatest common divisor of canonical nodes and global batch, which
serves every N that divides both. Streams come in numbers that no N divides, so some canonical nodes have a sample too
many in a batch and others one too few: those are exchanged, between neighbours that few N tell apart. Pure numpy.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


def classes_of(canonical_nodes: int, global_batch: int) -> int:
    """How many sorts of places are told apart."""
    return math.gcd(canonical_nodes, global_batch)


def samples_at(
    places: Places, counts: NDArray[np.int64], first: NDArray[np.int64], classes: int, global_batch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The stream of each place and which of the stream's samples in the batch it has, both of shape (batches, places).

    Args:
        places: of a batch, the same in all of them.
        counts: samples of each stream in each batch, of shape (batches, streams).
        first: the class of the first of them, modulo `classes`.
        classes: of `classes_of`.
        global_batch: the sum of each row of `counts`.
    """
    kinds, room = np.arange(classes), global_batch // classes
    full, rest = np.divmod(counts, classes)
    more = (kinds - first[..., None]) % classes < rest[..., None]
    upto = np.cumsum(full[..., None] + more, axis=1)  # (batches, streams, classes): of this stream and those before
    kind, row = (np.broadcast_to(part, (len(counts), len(places))) for part in (places % classes, places // classes))
    if classes > 1:
        kind, row = _exchanged(kind, row, upto[:, -1].astype(np.int64), room)
    batch = np.arange(len(counts))[:, None]
    stream, before = np.zeros(kind.shape, np.int64), np.zeros(kind.shape, np.int64)
    for one in range(counts.shape[1] - 1):  # stream by stream, whose arrays stay in the cache
        own = upto[:, one][batch, kind]
        past = own <= row
        stream += past
        np.copyto(before, own, where=past)
    after = kind - first[batch, stream]
    after += classes * (after < 0)
    return stream, (row - before) * classes + after


def _exchanged(
    kind: NDArray[np.int64], row: NDArray[np.int64], there: NDArray[np.int64], room: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where places of a class have no sample of it, those that another class has too many.

    Args:
        kind: the class of each place, of shape (batches, places).
        row: which of the places of its class each is, of the same shape.
        there: samples of each class in each batch, of shape (batches, classes).
        room: places of a class.
    """
    turn = _halved(there.shape[1])
    back = np.argsort(turn)
    free, over = np.maximum(room - there, 0)[:, turn], np.maximum(there - room, 0)[:, turn]
    free_before, over_upto = np.cumsum(free, axis=1) - free, np.cumsum(over, axis=1)
    batch, place = np.nonzero(row >= np.take_along_axis(there, kind, axis=1))
    empty = kind[batch, place]
    number = free_before[batch, back[empty]] + row[batch, place] - there[batch, empty]
    at = (over_upto[batch] <= number[:, None]).sum(axis=1)
    kind, row = kind.copy(), row.copy()
    kind[batch, place] = turn[at]
    row[batch, place] = room + number - (over_upto - over)[batch, at]
    return kind, row


def _halved(classes: int) -> NDArray[np.int64]:
    """The classes in an order whose neighbours are equal modulo much: even ones first, and so on."""
    numbers, key = np.arange(classes), np.zeros(classes, np.int64)
    bit = 1
    while classes % (2 * bit) == 0:
        key = key * 2 + numbers // bit % 2
        bit *= 2
    return np.argsort(key, kind="stable")
