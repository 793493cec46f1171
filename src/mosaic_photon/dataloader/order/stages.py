"""How many samples of each stream every global batch of a stage has. Exact arithmetic, without a file of the data.

After every batch of a stage, each stream has had less than one sample more or less than the sum of its shares, and all
batches are whole: that is Tijdeman's chairman assignment (Discrete Mathematics 32, 1980). A stream's k-th sample may
come as soon as the sum of its shares is above k - 1, and has to come when it is k; of those that may, the ones that
have to come first are taken. As the shares themselves would be a plan if samples could be cut, there is always one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.node.files import map_made
from mosaic_photon.errors import ConfigError

VERSION = 1
"""Of the numbers that a stage makes: part of the name under which a node keeps them."""
PIECE = 1 << 12
"""So many batches are made at once, in some 15 ms: no step waits for more."""
HELD = 2
"""Pieces that a process holds: what is read, and what is fetched ahead."""
Shares = tuple[Fraction, ...]


@dataclass(frozen=True)
class Stage:
    """A part of a run with its own shares of streams; `before` are those that a ramp comes from."""

    shares: Shares
    """Of each stream, 1 in all."""
    batches: int | None = None
    """None: to the end of the run."""
    before: Shares | None = None

    def share(self, batch: int) -> list[Fraction]:
        """Of each stream in a batch of the stage; in a ramp the value at the batch's middle."""
        if self.before is None:
            return list(self.shares)
        assert self.batches is not None
        part = Fraction(2 * batch + 1, 2 * self.batches)
        return [first + (last - first) * part for first, last in zip(self.before, self.shares, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """What a data state keeps of it."""
        shares = {name: [str(one) for one in value] for name in ("shares", "before") if (value := getattr(self, name))}
        return {"batches": self.batches, **shares}

    @classmethod
    def of_json(cls, kept: dict[str, Any]) -> Stage:
        """The way back from `as_json`."""
        before = kept.get("before")
        return cls(_fractions(kept["shares"]), kept["batches"], _fractions(before) if before else None)


def _fractions(texts: list[str]) -> Shares:
    return tuple(map(Fraction, texts))


@dataclass(frozen=True)
class _Sums:
    """Of a stage's shares: after t batches stream i is due (linear[i] t + square[i] t^2) / unit samples."""

    linear: NDArray[Any]
    square: NDArray[Any]
    unit: int
    end: int
    """Behind the last batch of the stage; whatever is due later is due then."""

    @classmethod
    def of(cls, stage: Stage, global_batch: int, batches: int) -> _Sums:
        """Numbers are Python's where int64 is too small for `batches` batches."""
        first, last = stage.before or stage.shares, stage.shares
        parts = math.lcm(*(share.denominator for share in (*first, *last)))
        begin, gain = [int(a * parts) for a in first], [int((b - a) * parts) for a, b in zip(first, last, strict=True)]
        length = 2 * (stage.batches or 1) if stage.before else 1
        linear, square = [length * global_batch * a for a in begin], [global_batch * c for c in gain]
        most = batches + 2
        largest = max(linear) * most + max(map(abs, square)) * most**2 + length * parts * (global_batch * most + 1)
        kind: Any = np.int64 if largest < 2**62 else object
        end = stage.batches + 1 if stage.batches is not None else 1 << 60
        return cls(np.array(linear, kind), np.array(square, kind), length * parts, end)

    def at(self, batches: NDArray[np.int64]) -> NDArray[Any]:
        """Numerators, of shape (batches, streams), or of that of `batches` where it has streams."""
        t = (batches if batches.ndim > 1 else batches[:, None]).astype(self.linear.dtype)
        return (self.linear + self.square * t) * t

    def due(self, samples: NDArray[Any], now: NDArray[np.int64]) -> NDArray[np.int64]:
        """After how many batches each stream must have had so many samples, both of shape (batches, streams).

        Args:
            samples: more than the stream has to have had after `now` batches, by at most one.
            now: of shape (batches,).
        """
        wanted = samples * self.unit
        if not self.square.any():
            due = -(-wanted // np.maximum(self.linear, 1))
            return np.minimum(due, self.end).astype(np.int64)
        slope, bend = (part.astype(np.float64) / self.unit for part in (self.linear, self.square))
        root = np.sqrt(np.maximum(slope**2 + 4 * bend * samples.astype(np.float64), 0))
        with np.errstate(divide="ignore"):
            about = 2 * samples.astype(np.float64) / (slope + root)
        due = np.ceil(np.clip(about, now[:, None] + 1.0, self.end)).astype(np.int64)
        due -= (self.at(due - 1) >= wanted).astype(bool)  # floating point is off by less than one
        due += (self.at(due) < wanted).astype(bool)
        return np.minimum(due, self.end)


def numbers_of(
    stage: Stage, global_batch: int, batches: int, begin: int = 0, had: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.int64]]:
    """How many samples of each stream the stage has had, piece by piece: after `begin`, `begin` + 1, ... `batches`.

    Pieces are of shape (some batches, streams). What comes after a batch has no part in its numbers.

    Args:
        stage: whose.
        global_batch: samples of a batch.
        batches: the last of them.
        begin: where to go on.
        had: the numbers then; not asked for at the stage's begin.
    """
    sums = _Sums.of(stage, global_batch, batches)
    had = np.zeros(len(stage.shares), np.int64) if had is None else had
    last: list[int] = (sums.at(np.array([begin]))[0] // sums.unit).tolist()  # the whole part of what is due
    ahead = [stream for stream, number in enumerate(had.tolist()) if number > last[stream]]  # they have one more
    yield had[None]
    for first in range(begin + 1, batches + 1, PIECE):
        now = np.arange(first, min(first + PIECE, batches + 1))
        numerators = sums.at(now)
        whole = numerators // sums.unit
        may = (whole * sums.unit < numerators).astype(bool)
        whole = whole.astype(np.int64)
        due = np.where(may, sums.due((whole + 1).astype(sums.linear.dtype), now), np.iinfo(np.int64).max)
        missing = global_batch * now - whole.sum(axis=1)
        rows = whole.tolist()
        for row, count, order in zip(
            rows, missing.tolist(), np.argsort(due, axis=1, kind="stable").tolist(), strict=True
        ):
            ahead = [stream for stream in ahead if row[stream] == last[stream]]
            last = row.copy()
            if len(ahead) < count:
                ahead += [stream for stream in order if stream not in ahead][: count - len(ahead)]
            for stream in ahead:
                row[stream] += 1
        yield np.array(rows, np.int64)


@dataclass
class Numbers:
    """`numbers_of` a stage, made as they are asked for, each piece from the end of the one before.

    The first piece is made by each process, each other one once a node, in a file that all its ranks map.
    """

    stage: Stage
    global_batch: int
    folder: Callable[[], Path]
    """Asked where there is more than one piece."""
    _held: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False)

    def between(self, begin: int, end: int) -> NDArray[np.int64]:
        """Samples of each stream after `begin`, `begin` + 1, ... and `end` batches, of shape (those batches, streams).

        Raises ConfigError if there is no room for them.
        """
        first, last = (max(0, batch - 1) // PIECE for batch in (begin, end))
        parts = []
        for number in range(first, last + 1):
            before = number * PIECE
            parts.append(self._piece(number)[max(begin - before, int(number > first)) : end - before + 1])
        return np.concatenate(parts)

    def _piece(self, number: int) -> NDArray[np.int64]:
        """After as many pieces, and after each batch of one more, of shape (batches + 1, streams)."""
        first = number
        while first and first not in self._held and not self._path(first).exists():
            first -= 1
        for one in range(first, number + 1):
            held = self._held  # threads that ask at the same time may each put a dict of their own there
            piece = held[one] if one in held else self._mapped(one) if one else self._made(one)
            others = [kept for kept in held.items() if kept[0] != one]
            self._held = {**dict(others[1 - HELD :]), one: piece}
        return piece

    def _made(self, number: int) -> NDArray[np.int64]:
        begin, length = number * PIECE, self.stage.batches
        end = begin + PIECE if length is None else min(begin + PIECE, length)
        had = self._piece(number - 1)[-1] if number else None
        return np.concatenate(list(numbers_of(self.stage, self.global_batch, end, begin, had)))

    def _mapped(self, number: int) -> NDArray[np.int64]:
        path = self._path(number)
        try:
            mapped = map_made(path, lambda part: self._made(number).tofile(part))
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot keep a stage's numbers of samples on this node: {error.strerror}; free some space, or"
                " set mosaic.node_folder"
            ) from error
        return np.frombuffer(mapped, np.int64).reshape(-1, len(self.stage.shares))

    def _path(self, number: int) -> Path:
        text = f"stage {VERSION} {self.global_batch} {PIECE} {number} {self.stage.as_json()}"
        return self.folder() / "orders" / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
