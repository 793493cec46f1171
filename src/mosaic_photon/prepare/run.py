"""Text -> MDS shards in two stages, each in parallel and each resumed where it was stopped.

All work goes on in `<out>.partial`, which becomes `<out>` by one rename when it is whole:
`tokens/` holds a file of token ids per unit of work and split, then `train/` and `val/` their shards.
What is to be removed is first renamed to `<out>.replaced`. Of these three only an empty one or one with our record is
ever touched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TimeRemainingColumn

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import display, locked, write_json
from mosaic_photon.prepare import record as records
from mosaic_photon.prepare.pool import run_parallel
from mosaic_photon.prepare.shards import TokenSequence, write_index, write_shard
from mosaic_photon.prepare.sources import Piece, TextSource, cut
from mosaic_photon.prepare.tokenization import SPLITS, Count, Tokenization, read_count, tokenize_unit, unit_file

UNIT_BYTES = (1 << 20, 32 << 20)  # least and most source bytes that are kept or lost at once


class TooLittleError(ConfigError):
    """A split has less than one sample of text."""

    def __init__(self, split: str, tokens: int, sample: int) -> None:
        super().__init__(
            f"the {split} split has {tokens} tokens, less than one sample of {sample}: "
            "give more text, another --val share or a smaller --seq-len"
        )
        self.split, self.tokens, self.sample = split, tokens, sample


@dataclass(frozen=True)
class Work:
    """One call, checked."""

    sources: list[TextSource]
    how: Tokenization
    record: dict[str, Any]
    out: Path
    workers: int
    overwrite: bool
    cuttable: bool = True
    """Whether a large text file may be tokenized in parts."""

    def without_val(self) -> Work:
        """The same with all documents in train."""
        how = replace(self.how, options=replace(self.how.options, val=0.0))
        return replace(self, how=how, record=self.record | {"val": 0.0})

    @property
    def partial(self) -> Path:
        """Where the work goes on until it is whole."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def replaced(self) -> Path:
        """The name of a folder of ours from the moment when it is to be removed."""
        return self.out.with_name(self.out.name + ".replaced")


def prepare(work: Work) -> dict[str, Any] | None:
    """Do the work; returns its record with what was made of each split, or None where the folder holds it already.

    Raises:
        ConfigError: the folder holds something else, a source is not text, or a split has less than a sample.
    """
    if _is_done(work):
        return None
    partial = work.partial
    with _claim(work):
        if _is_done(work):  # by the call that held the claim a moment ago
            return None
        record = records.read_record(partial) or {}
        if "splits" not in record:
            record = work.record | _build(work, partial)
            write_json(partial / records.FILE, record)
        shutil.rmtree(partial / "tokens", ignore_errors=True)
        _publish(work)
    return record


def _build(work: Work, partial: Path) -> dict[str, Any]:
    if work.how.options.val and len(work.sources) == 1 and work.sources[0].kind == "text":
        raise ConfigError(
            f"{display(work.sources[0].path)} is one document, which cannot be split: give --val 0, or more files, "
            "or JSONL with a document a line"
        )
    try:
        with _progress() as progress:
            counts = _tokenize(work, str(partial / "tokens"), progress)
            bad_lines = [line for count in counts for line in count.bad_lines]
            if bad_lines:
                listed = "".join(f"{line}\n" for line in bad_lines)
                (partial / records.BAD_LINES).write_text(listed, "utf-8", "backslashreplace")
            return {
                "splits": _write_splits(work, counts, progress),
                "tokenizer_folder": os.path.dirname(work.how.tokenizer_file),
                "empty_documents": sum(count.empty for count in counts),
                "special_texts": sum(count.special for count in counts),
                "bad_lines_left_out": len(bad_lines),
            }
    except OSError as error:
        raise ConfigError(
            f"reading or writing failed (what is finished is kept; the same command goes on from there): {error}"
        ) from error


def _is_done(work: Work) -> bool:
    before = records.read_record(work.out)
    if before is None:
        return False
    changed = records.record_differences(before, work.record)
    if changed and not work.overwrite:
        raise ConfigError(
            f"{display(work.out)} was prepared otherwise: {'; '.join(changed)}. "
            "Choose another --out, or give --overwrite to replace it"
        )
    return not changed


@contextmanager
def _claim(work: Work) -> Iterator[None]:
    """Own the folder of unfinished work: resume the same work's, refuse another's."""
    partial = work.partial
    with _lock(partial.with_name(partial.name + ".lock"), work.out):
        records.read_record(work.replaced)  # refuses someone else's before the work, not after it
        before = records.read_record(partial)
        changed = [] if before is None else records.record_differences(before, work.record)
        if changed and not work.overwrite:
            raise ConfigError(
                f"{display(partial)} holds unfinished work of another call: {'; '.join(changed)}. "
                "Finish that one, or give --overwrite to start anew"
            )
        if before is None or changed:
            _set_aside(partial, work)
            _remove(work.replaced)
            partial.mkdir()
            write_json(partial / records.FILE, work.record)
        (partial / "tokens").mkdir(exist_ok=True)
        yield


@contextmanager
def _lock(path: Path, out: Path) -> Iterator[None]:
    """A lock that ends with the process, however it ends."""
    try:
        with locked(path, wait=False, remove=True) as held:
            if not held:
                raise ConfigError(f"another prepare is writing {display(out)} right now")
            yield
    except (PermissionError, NotADirectoryError) as error:
        raise ConfigError(f"cannot write beside {display(out)}: {error}") from error


def _units(work: Work) -> list[list[Piece]]:
    """Pieces in order, grouped into units of work of about a 64th of the whole, within UNIT_BYTES."""
    low, high = UNIT_BYTES
    target = min(max(sum(source.size for source in work.sources) // 64, low), high)
    units: list[list[Piece]] = [[]]
    size = 0
    for source in work.sources:
        for piece in cut(source, work.cuttable):
            if size >= target:
                units.append([])
                size = 0
            units[-1].append(piece)
            size += piece.size
    return units


def _tokenize(work: Work, folder: str, progress: Progress) -> list[Count]:
    """Token files of all units; those an earlier run finished are kept."""
    units = _units(work)
    sizes = [sum(piece.size for piece in unit) / 2**20 for unit in units]
    known = {number: count for number in range(len(units)) if (count := read_count(folder, number))}
    missing = [number for number in range(len(units)) if number not in known]
    task = progress.add_task("tokens", total=sum(sizes), unit="MiB")
    progress.update(task, completed=sum(sizes[number] for number in known), refresh=True)

    def finished(position: int) -> None:
        progress.update(task, advance=sizes[missing[position]], refresh=True)

    calls = [(number, units[number], work.how, folder) for number in missing]
    counts = run_parallel(work.workers, tokenize_unit, calls, finished) if calls else []
    known |= dict(zip(missing, counts, strict=True))
    return [known[number] for number in range(len(units))]


def _write_splits(work: Work, counts: list[Count], progress: Progress) -> dict[str, Any]:
    import streaming  # noqa: F401  (once, here: the workers inherit it)

    options, partial = work.how.options, work.partial
    n, step = options.tokens_per_sample, options.tokens_per_sample * options.samples_per_shard
    sequences = {split: _sequence(counts, partial / "tokens", split) for split in SPLITS[: 2 if options.val else 1]}
    calls = []
    for split, sequence in sequences.items():
        if sequence.size < n:
            _set_aside(partial, work)
            _remove(work.replaced)
            raise TooLittleError(split, sequence.size, n)
        (partial / split).mkdir(exist_ok=True)
        end, notes = sequence.size // n * n, str(partial / "tokens" / split)
        for number, start in enumerate(range(0, end, step)):
            stretches = sequence.stretches(start, min(start + step, end))
            calls.append((number, stretches, options, str(partial / split), notes))
    task = progress.add_task("shards", total=len(calls), unit="shards")
    entries = run_parallel(work.workers, write_shard, calls, lambda _: progress.update(task, advance=1, refresh=True))
    summary = {}
    for split, sequence in sequences.items():
        own = [entry for entry, call in zip(entries, calls, strict=True) if call[3] == str(partial / split)]
        write_index(partial / split, own)
        samples = sum(entry["samples"] for entry in own)
        summary[split] = {
            "documents": sum(count.documents[split] for count in counts),
            "samples": samples,
            "tokens": samples * n,
            "tokens_left_over": sequence.size - samples * n,
            "shards": len(own),
            "bytes": sum((entry["zip_data"] or entry["raw_data"])["bytes"] for entry in own),
        }
    return summary


def _sequence(counts: list[Count], folder: Path, split: str) -> TokenSequence:
    files = [str(unit_file(str(folder), number, f"{split}.bin")) for number in range(len(counts))]
    return TokenSequence(files, [count.tokens[split] for count in counts])


def _publish(work: Work) -> None:
    """Put the finished folder in place; an older one is there until the moment it is replaced."""
    _set_aside(work.out, work)
    os.rename(work.partial, work.out)
    _remove(work.replaced)


def _set_aside(folder: Path, work: Work) -> None:
    """Rename a folder before it is removed: what a killed call leaves of it is then never taken for a whole one."""
    _remove(work.replaced)
    if folder.exists():
        os.rename(folder, work.replaced)


def _remove(folder: Path) -> None:
    """Remove a folder of ours, its record last, by which the next call knows what a killed one left."""
    records.read_record(folder)  # raises for what is not ours
    for part in ("tokens", *SPLITS):
        shutil.rmtree(folder / part, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _progress() -> Progress:
    """Refreshed by hand: a thread that draws would be copied, half-way, into the worker processes."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[unit]}", TaskProgressColumn())
    return Progress(*columns, TimeRemainingColumn(), auto_refresh=False)
