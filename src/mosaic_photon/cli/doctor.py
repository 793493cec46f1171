"""`mosaic-photon doctor`: check this machine for a job, one line per finding, before the job is started."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mosaic_photon.cli.terminal import check_nodes
from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    from mosaic_photon.doctor import Finding

MARKS = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("job", nargs="?", metavar="JOB.toml", help="job config; without it the machine alone is checked")
    add("data", nargs="?", metavar="DATA.toml", help="data config, TOML or llm-foundry's YAML")
    add("--nnodes", type=int, default=1, metavar="N", help="machines the job has (default 1)")
    add(
        "--nproc-per-node",
        type=int,
        metavar="N",
        help="processes on each (default: one per accelerator, one without)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the findings as they come; 1 where the job could not run."""
    import logging

    from rich.console import Console
    from rich.markup import escape

    processes_here = _devices() if args.nproc_per_node is None else args.nproc_per_node
    check_nodes(args.nnodes, processes_here)
    console = Console()
    counts = {"ok": 0, "warn": 0, "fail": 0}
    logging.disable(logging.WARNING)  # retries and the like: the findings say how it ended
    try:
        for finding in findings(args, processes_here):
            counts[finding.level] += 1
            line = f"{MARKS[finding.level]}  {escape(finding.subject)}: {escape(finding.text)}"
            console.print(line, highlight=False, soft_wrap=True)
    finally:
        logging.disable(logging.NOTSET)
    console.print(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} in the way", highlight=False)
    return int(counts["fail"] > 0)


def findings(args: argparse.Namespace, processes_here: int) -> Iterator[Finding]:
    """All findings, cheap ones first."""
    from mosaic_photon.doctor.machine import check_machine

    yield from check_machine(processes_here, args.nnodes)
    if args.job is not None:
        yield from _check_configs(args.job, args.data, args.nnodes, processes_here)


def _check_configs(job_path: str, data_path: str | None, nodes: int, processes_here: int) -> Iterator[Finding]:
    from mosaic_photon.dataloader.node.settings import Settings, in_force
    from mosaic_photon.doctor import Finding
    from mosaic_photon.doctor.job import check_data, check_job
    from mosaic_photon.job.data_config import load_data_config
    from mosaic_photon.job.load import load_job
    from mosaic_photon.train_with_mosaic import CONFIGS

    if data_path is None and not _is_job(job_path):
        job_path, data_path = "", job_path
    data_path = data_path or f"{CONFIGS}/mosaic_dataloader.toml"  # as the launch command does
    try:
        data = load_data_config(data_path)
    except ConfigError as error:
        yield Finding("fail", "data config", str(error))
        return
    yield Finding("ok", "data config", data_path)
    try:
        job = load_job(job_path, data_path, []) if job_path else None
    except ConfigError as error:
        yield from check_data(data)
        yield Finding("fail", "job config", str(error))
        return
    if job is None:
        yield from check_data(data)
        return
    with in_force(Settings.of(job.mosaic)):
        yield from check_data(data)
    yield Finding("ok", "job config", job_path)
    yield from check_job(job, nodes, processes_here)


def _is_job(path: str) -> bool:
    """Whether one config given alone is a job's; a data config says itself what it is."""
    if not path.endswith(".toml") or not os.path.isfile(path):
        return not path.endswith((".yaml", ".yml"))
    from mosaic_photon.job.load import read_toml

    return not {"mosaic_dataloader", "train_loader"} & read_toml(path).keys()


def _devices() -> int:
    import torch

    return max(1, torch.accelerator.device_count())
