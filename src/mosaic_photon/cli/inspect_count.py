"""`mosaic-photon inspect DATA --count`: the samples themselves, read and counted, as a table and a page."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_photon.cli.terminal import bar
from mosaic_photon.files import check_path, display, write_whole

if TYPE_CHECKING:
    from mosaic_photon.dataloader.count import Counts, Meaning, Part, StreamCount
    from mosaic_photon.dataloader.dataset import ShardedDataset
    from mosaic_photon.job.data_config import DataConfig

WORKERS = 16
"""At most."""
PARTS = 16
"""A worker's, so that the bar moves and none waits long for the last."""
TOTAL = "all"


def page_path(args: Any) -> Path | None:
    """Where the page goes: beside the data config unless told otherwise; None: nowhere, with `--json` alone.

    Raises:
        ConfigError: not to a file that can be written, or one of somebody else's.
    """
    from mosaic_photon.cli.report import check_page, refuse_others_file
    from mosaic_photon.report.counts import GENERATOR

    if args.out is None and args.json:
        return None
    if args.out is not None:
        check_path("--out", args.out)
    page = Path(args.out) if args.out is not None else Path(args.config).with_suffix(".count.html")
    check_page(page)
    refuse_others_file(page, GENERATOR)
    return page


def count_data(config: DataConfig, folder: str | None, whole: bool) -> dict[str, list[StreamCount]]:
    """Of each loader its streams, and what they are together where they are several.

    Args:
        folder: of the tokenizer; None: ids are all that is known.
        whole: all samples, in several processes.
    """
    between = {key: config.train["dataset"].get(key) for key in ("eos_token_id", "bos_token_id")}
    return {
        name: _count_loader(loader, _meaning(between | loader["dataset"], folder), whole, name)
        for name, loader in config.loaders()
    }


def _meaning(dataset: dict[str, Any], folder: str | None) -> Meaning:
    from mosaic_photon.dataloader.count import Meaning
    from mosaic_photon.prepare.tokenization import find_tokenizer, load_tokenizer
    from mosaic_photon.token_bytes import TokenBytes
    from mosaic_photon.tokenizers import special_id

    eos, bos = dataset.get("eos_token_id"), dataset.get("bos_token_id")
    stored, separator = dataset.get("token_encoding_type") or "int64", bos if eos is None else eos
    if folder is None:
        return Meaning(stored, separator)
    tokenizer = load_tokenizer(find_tokenizer(folder)[0])
    return Meaning(stored, separator, special_id(folder, "pad", tokenizer), tokenizer, TokenBytes.of(tokenizer))


def _count_loader(loader: dict[str, Any], meaning: Meaning, whole: bool, name: str) -> list[StreamCount]:
    from mosaic_photon.dataloader import count, inspection
    from mosaic_photon.prepare.pool import Processes

    dataset = inspection.open_dataset(loader)
    workers = min(WORKERS, len(os.sched_getaffinity(0))) if whole else 1
    parts = count.parts_of(dataset, whole, workers * PARTS)
    streams = [count.total([]) for _ in dataset.stream_names]
    with bar(f"counting {name}", sum(count.samples_in(dataset, part) for part in parts)) as advance:

        def finished(position: int, counts: Counts) -> None:
            streams[parts[position][0]].add(counts)
            advance(counts.read)

        if workers > 1:
            dataset.cache.close()  # what is connected does not go through a fork
            Processes(workers).run(_count_alone, ((loader, part, meaning) for part in parts), finished)
        else:
            for position, part in enumerate(parts):
                finished(position, count.count(dataset, part, meaning))
    dataset.reader.close()
    dataset.cache.close()
    return _summaries(dataset, streams, meaning)


_open: dict[str, ShardedDataset] = {}


def _count_alone(loader: dict[str, Any], part: Part, meaning: Meaning) -> Counts:
    """In a worker process, which opens a loader's data once."""
    from mosaic_photon.dataloader import count, inspection

    key = repr(loader)
    if key not in _open:
        _open.clear()
        _open[key] = inspection.open_dataset(loader)
    return count.count(_open[key], part, meaning)


def _summaries(dataset: ShardedDataset, streams: list[Counts], meaning: Meaning) -> list[StreamCount]:
    from mosaic_photon.dataloader.count import summary, total

    samples = dataset.samples_per_stream.tolist()
    named = zip(dataset.stream_names, samples, streams, strict=True)
    summaries = [summary(name, number, counts, meaning) for name, number, counts in named]
    if len(streams) > 1:
        together = summary(TOTAL, sum(samples), total(streams), meaning)
        together.tokens = _sum([stream.tokens for stream in summaries])  # each stream was read to another part
        together.documents = _sum([stream.documents for stream in summaries])
        summaries.append(together)
    return summaries


def _sum(numbers: list[int | None]) -> int | None:
    return None if None in numbers else sum(number for number in numbers if number is not None)


COLUMNS = (
    "stream", "samples", "read", "tokens", "documents", "bytes a token", "vocabulary used", "beyond the first 1,000",
    "duplicates", "padding", "special tokens",
)  # fmt: skip


def cells(stream: StreamCount) -> list[str]:
    """A stream's row of a table with COLUMNS; what nothing tells is a dash."""
    about = "" if stream.read == stream.samples else "about "
    used = "–" if stream.used is None else f"{stream.used:,}"
    return [
        stream.name,
        f"{stream.samples:,}",
        "all" if stream.read == stream.samples else f"{stream.read:,}",
        _number(stream.tokens, about),
        _number(stream.documents, about),
        "–" if stream.bytes_per_token is None else f"{stream.bytes_per_token:.2f}",
        used if stream.vocabulary is None or stream.used is None else f"{used} of {stream.vocabulary:,}",
        _share(stream.beyond_common),
        _share(stream.duplicates, "" if stream.duplicates_exact else "about "),
        _share(stream.padding),
        _share(stream.special),
    ]


def _number(value: int | None, about: str) -> str:
    return "–" if value is None else f"{about}{value:,}"


def _share(value: float | None, about: str = "") -> str:
    return "–" if value is None else f"{about}{value:.2%}"


def print_counts(console: Any, counts: dict[str, list[StreamCount]], folder: str | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    for name, streams in counts.items():
        table = Table(title=f"{name}: what its samples hold", title_justify="left")
        for heading in COLUMNS:
            table.add_column(heading, justify="left" if heading == "stream" else "right", overflow="fold")
        for stream in streams:
            table.add_row(*map(escape, cells(stream)))
        console.print(table)
    for note in notes(counts, folder):
        console.print(f"  {note}", highlight=False, soft_wrap=True)


def notes(counts: dict[str, list[StreamCount]], folder: str | None) -> list[str]:
    """What of the table has to be explained, a sentence each."""
    streams = [stream for found in counts.values() for stream in found]
    told = []
    if any(stream.read < stream.samples for stream in streams):
        told.append("A part of the samples was read: duplicates are those among them; --all reads all.")
    if folder is None:
        told.append("Bytes, padding and special tokens are the tokenizer's to tell: name it with --tokenizer or --job.")
    if any(stream.documents is None for stream in streams):
        told.append("Documents are told apart by the data config's eos_token_id or bos_token_id.")
    return told


def write_page(page: Path, config: str, counts: dict[str, list[StreamCount]], folder: str | None) -> str:
    """Write the page; returns the line that says so."""
    from mosaic_photon.report.counts import Loader, counts_page

    loaders = [
        Loader(name, [cells(stream) for stream in streams], [asdict(stream) for stream in streams])
        for name, streams in counts.items()
    ]
    write_whole(page, counts_page(config, COLUMNS, loaders, notes(counts, folder)).encode())
    return f"wrote {display(page)}"
