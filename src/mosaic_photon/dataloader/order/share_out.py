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
    places: Places, counts: NDArray[np.int64], first: NDArray[np.int64], begins: NDArray[np.int64], classes: int
) -> Places:
    """Which sample each place has, as `begins` numbers them; of shape (batches, places).

    Args:
        places: of a batch, the same in all of them.
        counts: samples of each stream in each batch, of shape (batches, streams). All batches have as many.
        first: the class of the first of them, modulo `classes`.
        begins: the number of the first of them; the stream's others in the batch count on from it.
        classes: of `classes_of`.
    """
    full, rest = np.divmod(counts, classes)
    after = (np.arange(classes) - first[..., None]) % classes
    of_class = full[..., None] + (after < rest[..., None])
    upto = np.cumsum(of_class, axis=1, dtype=np.int64)  # of this stream and those before it
    numbers = begins[..., None] + after  # (batches, streams, classes): of the sample in a class's row 0
    numbers[:, 1:] -= classes * upto[:, :-1]
    kind, row = places % classes, places // classes
    found = numbers[:, 0].take(kind, axis=1)
    for stream in range(1, counts.shape[1]):  # stream by stream, whose arrays stay in the cache
        past = upto[:, stream - 1].take(kind, axis=1) <= row
        np.copyto(found, numbers[:, stream].take(kind, axis=1), where=past)
    found += classes * row
    if classes > 1:
        there = upto[:, -1]
        batch, place = np.nonzero(there.take(kind, axis=1) <= row)
        lent, at = _lent(there, int(counts[0].sum()) // classes, batch, kind[place], row[place])
        stream = (upto[batch, :-1, lent] <= at[:, None]).sum(axis=1)
        found[batch, place] = numbers[batch, stream, lent] + classes * at
    return found


def _lent(
    there: NDArray[np.int64], room: int, batch: Places, empty: NDArray[np.int64], row: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For places whose class has no sample for them one that another class has too many: its class and row.

    Args:
        there: samples of each class in each batch, of shape (batches, classes).
        room: places of a class.
        batch: of each of the places.
        empty: the class of each.
        row: which of the places of its class each is.
    """
    turn = _halved(there.shape[1])
    back = np.argsort(turn)
    free, over = np.maximum(room - there, 0)[:, turn], np.maximum(there - room, 0)[:, turn]
    free_before, over_upto = np.cumsum(free, axis=1) - free, np.cumsum(over, axis=1)
    number = free_before[batch, back[empty]] + row - there[batch, empty]
    apart = (int(over_upto.max(initial=0)) + 1) * np.arange(len(there))  # each batch's numbers above those before
    at = np.searchsorted((over_upto + apart[:, None]).ravel(), number + apart[batch], side="right") % there.shape[1]
    return turn[at], room + number - (over_upto - over)[batch, at]


def _halved(classes: int) -> NDArray[np.int64]:
    """The classes in an order whose neighbours are equal modulo much: even ones first, and so on."""
    numbers, key = np.arange(classes), np.zeros(classes, np.int64)
    bit = 1
    while classes % (2 * bit) == 0:
        key = key * 2 + numbers // bit % 2
        bit *= 2
    return np.argsort(key, kind="stable")
