"""The table that a job shows before its first step."""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from mosaic_photon.checkpoints.find import checkpoint_folder
from mosaic_photon.compat.cpu_device_type import ON_CPU
from mosaic_photon.dataloader import DataSpecDataLoader
from mosaic_photon.dataloader.padding import Estimate, estimate
from mosaic_photon.job.documents import in_words
from mosaic_photon.report.record import RUN
from mosaic_photon.titan.interface import RunningTrainer
from mosaic_photon.titan.layouts import precision_line
from mosaic_photon.titan.metrics import knows_metrics
from mosaic_photon.titan.tools import logger


@dataclass(frozen=True)
class Summary:
    """What a job shows of itself before its first step."""

    parameters: int
    """Of the whole model."""
    estimated: Estimate
    rows: list[tuple[str, str]]
    """Name and value of each line: model, data, batch, layout, device, outputs."""


def summary_of(trainer: RunningTrainer, loader: DataSpecDataLoader) -> Summary | None:
    """The job's, on the ranks that tell of it: the first, and the one that keeps the record. Collective under PP."""
    parameters = count_parameters(trainer)
    if dist.get_rank() != 0 and not knows_metrics(trainer.parallel_dims, trainer.job_config):
        return None
    estimated = estimate(loader.data, trainer.job_config.training.seq_len)
    return Summary(parameters, estimated, job_rows(trainer, loader, parameters, estimated))


def print_summary(summary: Summary) -> None:
    """The table, and a warning where much is padding."""
    if summary.estimated.warning:
        logger.warning(summary.estimated.warning)
    table = Table(show_header=False, title="mosaic-photon", title_justify="left", pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary.rows:
        table.add_row(name, value)
    width = None if os.isatty(2) else 120
    Console(stderr=True, width=width).print(table)


def job_rows(
    trainer: RunningTrainer, loader: DataSpecDataLoader, parameters: int, estimated: Estimate
) -> list[tuple[str, str]]:
    """See `Summary.rows`."""
    job, metrics = trainer.job_config, trainer.job_config.metrics
    peak = max(float(group["initial_lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups)
    schedule = job.lr_scheduler.name or "TorchTitan"
    sinks = [name for name, on in (("TensorBoard", metrics.enable_tensorboard), ("W&B", metrics.enable_wandb)) if on]
    by_stream = "; loss, tokens and epochs of each stream" if job.mosaic.loss_per_stream else ""
    where = os.path.join(job.job.dump_folder, metrics.save_tb_folder)
    saves = f"{checkpoint_folder(job)}, every {job.checkpoint.interval} steps"
    return [
        ("model", f"{job.model.name} {job.model.flavor}, {parameters:,} parameters"),
        *data_rows(trainer, loader, estimated),
        ("optimizer", f"{job.optimizer.name}, peak lr {peak:g}, schedule {schedule}"),
        ("layout", layout_line(trainer)),
        ("record", os.path.join(job.job.dump_folder, RUN)),
        ("metrics", (f"{' and '.join(sinks)} in {where}" if sinks else "in the record") + by_stream),
        ("checkpoints", saves if job.checkpoint.enable else "off"),
    ]


def data_rows(trainer: RunningTrainer, loader: DataSpecDataLoader, estimated: Estimate) -> list[tuple[str, str]]:
    """The streams, what an epoch of them is worth, and the global batch."""
    training = trainer.job_config.training
    samples = sum(stream.samples for stream in estimated.streams)
    rows = [
        (f"stream {stream.name}", f"{stream.samples:,} samples, {stream} ({stream.samples / samples:.0%})")
        for stream in estimated.streams
    ]
    if estimated.in_words:
        rows.append(("padding", estimated.in_words))
    if documents := in_words(trainer.job_config, trainer.model_args):
        rows.append(("documents", documents))
    rows += loader.reads(training.steps)
    if skips := loader.skips_of(loader.begin):
        rows.append(("skipped", f"batches {skips} of the data's plan, {skips.count:,} in all"))
    accumulation = trainer.gradient_accumulation_steps
    size = loader.layout.global_batch
    accumulated = f", {accumulation} accumulated" if accumulation > 1 else ""
    tokens = f"{size} × {training.seq_len} = {size * training.seq_len:,} tokens a step"
    return [*rows, ("batch", f"{tokens} (micro-batches of {training.local_batch_size}{accumulated})")]


def count_parameters(trainer: RunningTrainer) -> int:
    """Parameters of the whole model, over all pipeline stages; shards count once."""
    count = torch.tensor([sum(p.numel() for part in trainer.model_parts for p in part.parameters())])
    mesh = trainer.parallel_dims.get_optional_mesh("pp")
    if mesh is not None:
        count = count.to(trainer.device)
        dist.all_reduce(count, group=mesh.get_group())
    return int(count)


def degrees(dims: Any) -> dict[str, int]:
    """The parallel degrees of TorchTitan's dimensions."""
    of_data = {"replicate": dims.dp_replicate, "shard": dims.dp_shard}
    return of_data | {"cp": dims.cp, "tp": dims.tp, "pp": dims.pp, "ep": dims.ep}


def layout_line(trainer: RunningTrainer) -> str:
    """Processes, the parallel degrees above 1, device and precision."""
    dims = trainer.parallel_dims
    active = ", ".join(f"{name} {degree}" for name, degree in degrees(dims).items() if degree > 1)
    device = f"{torch.get_num_threads()} CPU threads each" if ON_CPU else torch.cuda.get_device_name(trainer.device)
    processes = f"{dims.world_size} process{'es' if dims.world_size > 1 else ''}"
    return f"{processes}{f' ({active})' if active else ''} on {device}, {precision_line(trainer.job_config, dims)}"
