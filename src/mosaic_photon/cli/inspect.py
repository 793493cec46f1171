"""`mosaic-photon inspect`: what a data config's streams hold, whether they are whole, and what a job makes of them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from mosaic_photon.cli import inspect_count
from mosaic_photon.cli.terminal import bar, check_nodes, console, printable
from mosaic_photon.errors import ConfigError
from mosaic_photon.names import human_size

if TYPE_CHECKING:
    from mosaic_photon.dataloader.inspection import LoaderReport
    from mosaic_photon.job.tables import MosaicJobConfig

SHOWN_CHARACTERS = 400
SHOWN_TOKENS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="DATA.toml", help="data config, TOML or llm-foundry's YAML")
    add("--verify", action="store_true", help="hash every shard file that is on this machine")
    add("--samples", type=int, default=0, metavar="N", help="show the first N samples of each stream, decoded")
    add("--tokenizer", metavar="DIR", help="folder with tokenizer.json (default: the job's)")
    add("--job", metavar="JOB.toml", help="job config: show its steps per epoch and epochs")
    add(
        "--world-size",
        type=int,
        default=int(os.environ.get("WORLD_SIZE", 1)),
        metavar="N",
        help="processes the job has (default: WORLD_SIZE, else 1)",
    )
    add("--nnodes", type=int, metavar="N", help="nodes the job has: show what each reads and keeps")
    add("--nproc-per-node", type=int, metavar="M", help="processes of each node (default: 1)")
    add("--count", action="store_true",
        help="read samples of each stream and count tokens, documents and duplicates, into a page too")  # fmt: skip
    add("--all", action="store_true", help="with --count: all samples, in several processes")
    add("--out", metavar="PAGE.html", help="with --count: the page (default: beside the data config, DATA.count.html)")
    add("--json", action="store_true", help="print one JSON object instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 where a file is damaged."""
    from mosaic_photon.job.data_config import load_data_config

    _check_nodes(args)
    if (args.all or args.out) and not args.count:
        raise ConfigError("--all and --out say how to --count; add that.")
    config = load_data_config(args.config)
    job_config = _load_job(args) if args.job else None
    tokenizer = args.tokenizer or (job_config.model.hf_assets_path if job_config else None)
    known = {} if tokenizer is None else _vocabulary(tokenizer)
    page = inspect_count.page_path(args) if args.count else None
    reports = {name: _inspect(loader, args, known) for name, loader in config.loaders()}
    damaged = any(stream.damaged or stream.problem for report in reports.values() for stream in report.streams)
    damaged |= any("problems" in sample for report in reports.values() for sample in report.samples)
    job = _epochs(job_config, args) if job_config and not damaged else None
    counts = inspect_count.count_data(config, tokenizer, args.all) if args.count and not damaged else {}
    wrote = inspect_count.write_page(page, args.config, counts, tokenizer) if page and counts else ""
    if args.json:
        loaders = {name: asdict(report) for name, report in reports.items()}
        counted = {name: [asdict(stream) for stream in streams] for name, streams in counts.items()}
        told = {"config": args.config, **loaders, "job": job, **({"counts": counted} if args.count else {})}
        print(json.dumps(told, indent=2))
    else:
        _print(reports, job)
        inspect_count.print_counts(console(), counts, tokenizer)
        print(wrote, end="\n" if wrote else "")
    return int(damaged)


def _check_nodes(args: argparse.Namespace) -> None:
    """Let the nodes' processes be the job's."""
    if args.nnodes is None and args.nproc_per_node is None:
        return
    args.nnodes = 1 if args.nnodes is None else args.nnodes
    args.nproc_per_node = 1 if args.nproc_per_node is None else args.nproc_per_node
    check_nodes(args.nnodes, args.nproc_per_node)
    if not args.job:
        raise ConfigError("--nnodes and --nproc-per-node tell of a job; name it with --job")
    args.world_size = args.nnodes * args.nproc_per_node


def _inspect(loader: dict[str, Any], args: argparse.Namespace, known: dict[str, Any]) -> LoaderReport:
    from mosaic_photon.dataloader import inspection

    dataset = inspection.open_dataset(loader)
    report = inspection.inspect_loader(loader, dataset)
    if args.verify:
        with bar("verifying", inspection.bytes_here(dataset)) as advance:
            inspection.verify(report, dataset, advance)
    bytes_dtype = loader["dataset"].get("token_encoding_type") or "int64"
    vocabulary = inspection.Vocabulary(bytes_dtype, **known)
    report.samples = inspection.first_samples(dataset, args.samples, vocabulary)
    dataset.reader.close()
    dataset.cache.close()
    return report


def _vocabulary(folder: str) -> dict[str, Any]:
    """The tokenizer's number of ids and its way back to text."""
    from mosaic_photon.prepare.tokenization import find_tokenizer, load_tokenizer
    from mosaic_photon.tokenizers import vocabulary_size

    tokenizer = load_tokenizer(find_tokenizer(folder)[0])

    def decode(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=False)

    return {"size": vocabulary_size(tokenizer), "decode": decode}


def _load_job(args: argparse.Namespace) -> MosaicJobConfig:
    from mosaic_photon.job.load import load_job

    return load_job(args.job, args.config, [])


def _epochs(job: MosaicJobConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Steps and epochs of a job on this data, from the loader that its first rank would have."""
    from mosaic_photon.job.layout_checks import check_sequences, data_parallel_degree
    from mosaic_photon.prepare.tokenization import find_tokenizer, load_tokenizer
    from mosaic_photon.train.data import build_dataloader

    data_parallel = data_parallel_degree(job, args.world_size)
    check_sequences(job)
    tokenizer = load_tokenizer(find_tokenizer(job.model.hf_assets_path)[0])
    loader = build_dataloader(data_parallel, 0, tokenizer, job)
    samples, tokens = loader.layout.global_batch, loader.layout.global_batch * job.training.seq_len
    steps, rows = loader.steps_per_epoch, dict(loader.reads(job.training.steps))
    nodes = _nodes(job, args, data_parallel, loader) if args.nnodes else {}
    loader.close()
    return {
        "config": args.job,
        "world_size": args.world_size,
        "data_parallel": data_parallel,
        "samples_per_step": samples,
        "tokens_per_step": tokens,
        "steps_per_epoch": steps,
        "steps": job.training.steps,
        "epochs": job.training.steps / steps if steps else None,
        "reads": rows,
        **nodes,
    }


def _nodes(job: MosaicJobConfig, args: argparse.Namespace, data_parallel: int, loader: Any) -> dict[str, Any]:
    """What each node reads and keeps in an epoch; in stages while as much is read as the streams hold. Bytes."""
    from mosaic_photon.dataloader.need import needs_of_nodes, shards_of_stages, warning
    from mosaic_photon.dataloader.order.deal import places_of_mesh
    from mosaic_photon.dataloader.order.staged import StagedPlan

    inner = job.parallelism.tensor_parallel_degree * job.parallelism.context_parallel_degree
    places = places_of_mesh(args.world_size, args.nproc_per_node, data_parallel, inner)
    plan, dataset, steps = loader.plan, loader.data.dataset, None
    if isinstance(plan, StagedPlan):
        steps, orders = min(plan.end(0), job.training.steps), plan.orders
        shards_of_parts = partial(shards_of_stages, plan, dataset, steps)
    else:
        orders = (plan.orders,)
        shards_of_parts = partial(plan.orders.order.shards_of_nodes, 0)
    order, cache = orders[0].order, dataset.cache
    needs = needs_of_nodes(shards_of_parts, cache, places)
    return {
        "nodes_in_steps": steps,
        "nodes": [{"shards": n.shards, "bytes": n.bytes, "kept_bytes": n.kept_bytes} for n in needs],
        "shards": len(cache.shards),
        "download_bytes": sum(need.download_bytes for need in needs),
        "order_bytes": sum(one.bytes for one in orders),
        "index_bytes": sum(len(index.packed) for index in cache.shards.indexes),
        "warning": warning(needs, len(cache.shards), order, places),
    }


def _print(reports: dict[str, LoaderReport], job: dict[str, Any] | None) -> None:
    out = console()
    for name, report in reports.items():
        _print_loader(out, name, report)
    if job:
        reads = "; ".join(f"{name}: {value}" for name, value in job["reads"].items())
        if job["epochs"]:
            reads = (
                f"{job['steps_per_epoch']:,} steps an epoch; its {job['steps']:,} steps make {job['epochs']:.2f} epochs"
            )
        out.print(
            f"job {job['config']} on {job['world_size']} process(es): {job['samples_per_step']:,} samples = "
            f"{job['tokens_per_step']:,} tokens a step, {reads}",
            highlight=False,
            soft_wrap=True,
        )
    if job and "nodes" in job:
        _print_nodes(out, job)


def _print_nodes(out: Any, job: dict[str, Any]) -> None:
    nodes = job["nodes"]
    reads, size, kept = ([node[key] for node in nodes] for key in ("shards", "bytes", "kept_bytes"))
    downloaded, order, index = (human_size(job[key]) for key in ("download_bytes", "order_bytes", "index_bytes"))
    span = f"its first {job['nodes_in_steps']:,} steps" if job["nodes_in_steps"] else "an epoch"
    out.print(
        f"{len(nodes)} node(s): in {span} each reads {_range(reads, '{:,}'.format)} of {job['shards']:,} shards,"
        f" {_range(size, human_size)}, and keeps {_range(kept, human_size)}; {downloaded} are downloaded in"
        f" all; on each node the order takes {order}, the index {index}",
        highlight=False,
        soft_wrap=True,
    )
    if job["warning"]:
        out.print(f"[bold red]warning[/] {job['warning']}", highlight=False, soft_wrap=True)


def _range(values: list[int], say: Callable[[int], str]) -> str:
    least, most = min(values), max(values)
    return say(most) if say(least) == say(most) else f"{say(least)} to {say(most)}"


def _print_loader(out: Any, name: str, report: LoaderReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    title = f"{name}: loader {report.loader}, {report.epoch_samples:,} samples an epoch"
    table = Table(title=title, title_justify="left")
    for heading in ("stream", "shards", "samples", "tokens", "size", "columns", "compression", "hashes", "share"):
        right = heading in ("shards", "samples", "tokens", "size", "share")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for stream in report.streams:
        tokens = "text" if stream.tokens is None else f"{'' if stream.tokens_exact else '< '}{stream.tokens:,}"
        packed = f", {human_size(stream.stored_bytes)} stored" if stream.stored_bytes != stream.raw_bytes else ""
        table.add_row(
            escape(stream.name),
            f"{stream.shards:,}" + (f", {stream.shards_here:,} here" if stream.remote else ""),
            f"{stream.samples:,}",
            tokens,
            human_size(stream.raw_bytes) + packed,
            escape(", ".join(f"{column} {encoding}" for column, encoding in stream.columns.items())),
            ", ".join(stream.compression),
            f"{', '.join(stream.hashes) or 'none'} ({_verified(stream)})",
            f"{stream.share:.1%}",
        )
    out.print(table)
    for stream in report.streams:
        place = f"{stream.remote} -> {stream.local}" if stream.remote else stream.local
        out.print(escape(f"  {stream.name}: {place}"), highlight=False, soft_wrap=True)
        for file, fault in stream.damaged.items():
            out.print(f"[bold red]  damaged[/] {escape(f'{file}: {fault}')}", highlight=False, soft_wrap=True)
        if stream.problem:
            out.print(f"[bold red]  unusable[/] {escape(stream.problem)}", highlight=False, soft_wrap=True)
    for sample in report.samples:
        out.print(f"[bold]{escape(sample['stream'])}[/], sample {sample['sample']}:", highlight=False)
        for line in _sample_lines(sample):
            out.print(escape(f"  {line}"), highlight=False, soft_wrap=True)


def _verified(stream: Any) -> str:
    if stream.files_verified is None:
        return "not verified"
    good = stream.files_verified - sum("missing" not in fault for fault in stream.damaged.values())
    by_size = stream.files_verified - stream.files_hashed
    note = ", sizes only" if not stream.files_hashed else f", {by_size} by size only" if by_size else ""
    return f"{good} of {stream.files_verified} files good{note}" if stream.files_verified else "nothing here to verify"


def _sample_lines(sample: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in sample.items():
        if name in ("stream", "sample", "outside_vocabulary"):
            continue
        if name == "problems":
            lines += [f"PROBLEM: {_printable(problem)}" for problem in value]
        elif name == "tokens" and isinstance(value, list):
            lines.append(f"tokens ({len(value):,}): {_first(value, sample.get('outside_vocabulary', ()))}")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=repr)
            lines.append(
                f"{name}: {_printable(text[:SHOWN_CHARACTERS])}{' ...' if len(text) > SHOWN_CHARACTERS else ''}"
            )
    return lines


def _first(tokens: list[Any], outside: Collection[int]) -> str:
    """The first tokens, those outside the vocabulary marked."""
    shown = [f"{token} (outside)" if token in outside else str(token) for token in tokens[:SHOWN_TOKENS]]
    return ", ".join(shown) + (", ..." if len(tokens) > SHOWN_TOKENS else "")


def _printable(text: str) -> str:
    """As `printable`, with line ends indented."""
    return printable(text.replace("\t", " "), "\n").replace("\n", "\n    ")
