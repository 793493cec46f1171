"""Text -> MDS shards in two stages, each of parts done in parallel, and each resumed where it was stopped.

`tokens/` gets a file of token ids per part and split, then `train/` and `val/` their shards: `place.py` says where. A
part's work depends on its record alone, so that neither who does it nor how often shows in the result.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import display, json_bytes
from mosaic_photon.prepare import record as records
from mosaic_photon.prepare.objects import make_folder
from mosaic_photon.prepare.parts import parts_of
from mosaic_photon.prepare.place import Place, place_of
from mosaic_photon.prepare.pool import Executor, Processes
from mosaic_photon.prepare.shards import Stretch, TokenSequence, index_of, write_shard
from mosaic_photon.prepare.sources import Piece, TextSource
from mosaic_photon.prepare.tokenization import (
    SPLITS,
    Count,
    Tokenization,
    bad_lines_of,
    part_file,
    tokenize_part,
)
from mosaic_photon.stores import write

PARTS = 2
"""How sources are cut into parts: unfinished work that was cut otherwise is not gone on with."""


class TooLittleError(ConfigError):
    """A split has less than one sample of text."""

    def __init__(self, split: str, tokens: int, sample: int) -> None:
        super().__init__(
            f"the {split} split has {tokens} tokens, less than one sample of {sample}: "
            "give more text, another --val share (0 for no val split) or a smaller --seq-len"
        )
        self.split, self.tokens, self.sample = split, tokens, sample


@dataclass(frozen=True)
class Work:
    """One call, checked."""

    sources: list[TextSource]
    how: Tokenization
    record: dict[str, Any]
    out: str
    """An absolute path, or an address."""
    workers: int
    overwrite: bool
    cuttable: bool = True
    """Whether a large text file may be tokenized in parts."""
    ray: str | None = None
    """The cluster that does the work; None: processes of this machine."""

    def without_val(self) -> Work:
        """The same with all documents in train."""
        how = replace(self.how, options=replace(self.how.options, val=0.0))
        return replace(self, how=how, record=self.record | {"val": 0.0})

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS[: 2 if self.how.options.val else 1]

    def parts(self) -> Iterator[list[Piece]]:
        """Made anew each time, as there may be many."""
        return parts_of(self.sources, self.record["source_bytes"], self.cuttable)


class Tally:
    """What all parts put into the splits. Of each part it keeps how many tokens."""

    def __init__(self, parts: int) -> None:
        self.tokens = {split: np.zeros(parts, np.int64) for split in SPLITS}
        self.documents = dict.fromkeys(SPLITS, 0)
        self.empty = self.special = self.bad = 0
        self.with_bad_lines: list[int] = []

    def add(self, number: int, count: Count) -> None:
        for split in SPLITS:
            self.tokens[split][number] = count.tokens[split]
            self.documents[split] += count.documents[split]
        self.empty += count.empty
        self.special += count.special
        self.bad += count.bad
        if count.bad:
            self.with_bad_lines.append(number)


def prepare(work: Work) -> dict[str, Any] | None:
    """Do the work; returns its record with what was made of each split, or None where the folder holds it already.

    Raises:
        ConfigError: the folder holds something else, a source is not text, or a split has less than a sample.
    """
    place = place_of(work.out)
    if _is_done(work, place):
        place.tidy()
        return None
    with place.claimed():
        if _is_done(work, place):  # by the call that held the claim a moment ago
            return None
        record = _begun(work, place)
        if "splits" not in record:
            record = work.record | _build(work, place)
        place.finish(record)
    return record


def _is_done(work: Work, place: Place) -> bool:
    before = place.made()
    if before is None:
        return False
    changed = records.record_differences(before, work.record)
    if changed and not work.overwrite:
        raise ConfigError(
            f"{display(work.out)} was prepared otherwise: {'; '.join(changed)}. "
            "Choose another --out, or give --overwrite to replace it"
        )
    return not changed


def _begun(work: Work, place: Place) -> dict[str, Any]:
    """The record of the same work that was begun before, else of it now begun; another's is refused."""
    before = place.begun()
    begun = work.record | {"parts": PARTS}
    now = work.record if "splits" in (before or ()) else begun
    changed = [] if before is None else records.record_differences(before, now)
    if changed and not work.overwrite:
        raise ConfigError(
            f"{display(place.partial)} holds unfinished work of another call: {'; '.join(changed)}. "
            "Finish that one, or give --overwrite to start anew"
        )
    if before is None or changed:
        place.begin(begun)
        return begun
    return before


def _build(work: Work, place: Place) -> dict[str, Any]:
    if work.how.options.val and len(work.sources) == 1 and work.sources[0].kind == "text":
        raise ConfigError(
            f"{display(work.sources[0].path)} is one document, which cannot be split: give --val 0, or more files, "
            "or JSONL with a document a line"
        )
    try:
        with _executor(work, place) as executor, _progress() as progress:
            tally = _tokenize(work, place, executor, progress)
            if tally.bad:
                lines = (line for part in sorted(tally.with_bad_lines) for line in bad_lines_of(_tokens(place), part))
                listed = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
                write(f"{place.splits}/{records.BAD_LINES}", listed)
            return {
                "splits": _write_splits(work, place, tally, executor, progress),
                "tokenizer_folder": os.path.dirname(work.how.tokenizer_file),
                "empty_documents": tally.empty,
                "special_texts": tally.special,
                "bad_lines_left_out": tally.bad,
            }
    except OSError as error:
        raise ConfigError(
            f"{display(work.out)}: reading or writing failed (what is finished is kept; the same command goes on from "
            f"there): {error}"
        ) from error


def _executor(work: Work, place: Place) -> AbstractContextManager[Executor]:
    if work.ray is None:
        return nullcontext(Processes(work.workers))
    from mosaic_photon.prepare.on_ray import PACKAGES, Cluster, Needs

    ends = [(source.path, source.size) for source in (work.sources[0], work.sources[-1])]
    tokenizer = work.how.tokenizer_file, work.how.options.tokenizer
    versions = {name: version(name) for name in PACKAGES}
    return Cluster(work.ray, work.workers, Needs(versions, tokenizer, ends, f"{place.partial}/{records.FILE}"))


def _tokens(place: Place) -> str:
    return f"{place.partial}/tokens"


def _tokenize(work: Work, place: Place, executor: Executor, progress: Progress) -> Tally:
    """Token files of all parts; those an earlier run finished are kept."""
    tally, folder = Tally(sum(1 for _ in work.parts())), _tokens(place)
    make_folder(folder)
    shown = _Shown(progress, executor, "tokens", "parts", len(tally.tokens["train"]))

    def finished(number: int, count: Count) -> None:
        tally.add(number, count)
        shown.advance(0 if count.kept else sum(count.tokens.values()))

    calls = ((number, part, work.how, folder) for number, part in enumerate(work.parts()))
    executor.run(tokenize_part, calls, finished)
    return tally


def _write_splits(
    work: Work, place: Place, tally: Tally, executor: Executor, progress: Progress
) -> dict[str, dict[str, int]]:
    n = work.how.options.tokens_per_sample
    sequences = {split: _sequence(tally, _tokens(place), split) for split in work.splits}
    for split, sequence in sequences.items():
        if sequence.size < n:
            place.discard()
            raise TooLittleError(split, sequence.size, n)
        make_folder(f"{place.splits}/{split}")
    shards = [(split, number) for split, sequence in sequences.items() for number in range(_shards(work, sequence))]
    entries: dict[str, list[Any]] = {split: [None] * _shards(work, sequence) for split, sequence in sequences.items()}
    shown = _Shown(progress, executor, "shards", "shards", len(shards))

    def finished(position: int, entry: dict[str, Any]) -> None:
        split, number = shards[position]
        entries[split][number] = entry
        shown.advance()

    def call(split: str, number: int) -> tuple[Any, ...]:
        stretches, notes = _stretches(work, sequences[split], number), f"{_tokens(place)}/{split}"
        return number, stretches, work.how.options, f"{place.splits}/{split}", notes

    executor.run(write_shard, itertools.starmap(call, shards), finished)
    for split in reversed(work.splits):
        write(f"{place.splits}/{split}/index.json", json_bytes(index_of(entries[split])))
    return {split: _summary(work, tally, split, sequences[split], entries[split]) for split in work.splits}


def _summary(
    work: Work, tally: Tally, split: str, sequence: TokenSequence, entries: list[dict[str, Any]]
) -> dict[str, int]:
    samples = sum(entry["samples"] for entry in entries)
    tokens = samples * work.how.options.tokens_per_sample
    return {
        "documents": tally.documents[split],
        "samples": samples,
        "tokens": tokens,
        "tokens_left_over": sequence.size - tokens,
        "shards": len(entries),
        "bytes": sum((entry["zip_data"] or entry["raw_data"])["bytes"] for entry in entries),
    }


def _sequence(tally: Tally, folder: str, split: str) -> TokenSequence:
    sizes = tally.tokens[split]
    return TokenSequence([part_file(folder, number, f"{split}.bin") for number in range(len(sizes))], sizes)


def _step(work: Work) -> int:
    """Tokens of a shard."""
    return work.how.options.tokens_per_sample * work.how.options.samples_per_shard


def _shards(work: Work, sequence: TokenSequence) -> int:
    n = work.how.options.tokens_per_sample
    return -(-(sequence.size // n * n) // _step(work))


def _stretches(work: Work, sequence: TokenSequence, number: int) -> list[Stretch]:
    n, start = work.how.options.tokens_per_sample, number * _step(work)
    return sequence.stretches(start, min(start + _step(work), sequence.size // n * n))


class _Shown:
    """A stage in the progress bar: what is done of how many, by how many workers, and tokens a second."""

    def __init__(self, progress: Progress, executor: Executor, name: str, unit: str, total: int) -> None:
        self._progress, self._executor, self._unit, self._total = progress, executor, unit, total
        self._task = progress.add_task(name, total=total, said="")
        self._begin, self._done, self._tokens = time.monotonic(), 0, 0

    def advance(self, tokens: int = 0) -> None:
        self._done += 1
        self._tokens += tokens
        rate = self._tokens / max(time.monotonic() - self._begin, 1e-9)
        speed = f" {rate:,.0f} tokens/s," if self._tokens else ""
        said = f"{self._done:,}/{self._total:,} {self._unit},{speed} {self._executor.workers} workers"
        self._progress.update(self._task, advance=1, said=said, refresh=True)


def _progress() -> Progress:
    """Refreshed by hand: a thread that draws would be copied, half-way, into the worker processes."""
    columns = ("{task.description}", BarColumn(), "{task.fields[said]}", TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, auto_refresh=False)
