"""What a job's record says of a start: the job as it was resolved, what it runs on, its data."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from mosaic_photon.checkpoints.find import checkpoint_folder, complete_steps
from mosaic_photon.compat.cpu_device_type import ON_CPU
from mosaic_photon.dataloader import DataSpecDataLoader
from mosaic_photon.dataloader.padding import Estimate
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.report import console, recorder
from mosaic_photon.report.record import METRICS, RUN, Attempt
from mosaic_photon.titan.interface import RunningTrainer
from mosaic_photon.titan.metrics import knows_metrics
from mosaic_photon.train.stop import GracefulStop
from mosaic_photon.train.summary import degrees, print_summary, summary_of

PACKAGES = (
    "mosaic-photon", "torch", "torchtitan", "mosaicml-streaming", "mosaicml", "llm-foundry", "numpy", "triton",
)  # fmt: skip


def begin_record(trainer: RunningTrainer, loader: DataSpecDataLoader, started: float | None) -> None:
    """Show what the job is, and keep its record from now on, on the one rank that knows its metrics.

    Collective under pipeline parallelism. A job that only draws weights leaves no record.

    Args:
        trainer: finished, and its checkpoint not yet loaded.
        loader: the training data.
        started: when the process began with the job, in Unix seconds. None: no record is kept.
    """
    job, start, summary = trainer.job_config, trainer.parts.start, summary_of(trainer, loader)
    if summary is None:
        return
    if dist.get_rank() == 0:
        print_summary(summary)
    if started is None or job.checkpoint.create_seed_checkpoint or not knows_metrics(trainer.parallel_dims, job):
        return
    attempt = Attempt(
        time=started,
        begin=str(start),
        config=job.to_dict(),
        versions=versions(),
        machine=machine(trainer),
        layout=layout(trainer, summary.parameters),
        command=sys.orig_argv,
        data=data(loader, summary.estimated),
        table=summary.rows,
    )
    recorder.begin(
        Path(job.job.dump_folder),
        attempt,
        goes_on=start.step > 0,
        where=lambda: (trainer.step, loader.progress.tokens),
        waited=lambda: sum(trainer.metrics_processor.data_loading_times),
        compiled=compiled,
    )


def end_record(stop: GracefulStop, error: BaseException | None) -> None:
    """The job has ended: with an error, by a signal, or because it was done."""
    if error is not None:
        recorder.end(f"{type(error).__name__}: {error}")
    else:
        recorder.end("ended" if stop.signal_number is None else f"stopped by signal {stop.signal_number}")


def say_what_is_next(job: MosaicJobConfig, step: int, signal: int | None) -> None:
    """In a terminal: how far the job has come, where it all is, and the commands that take it from there."""
    lines = console.current()
    if lines is None or os.environ["RANK"] != "0":
        return
    dump, folder = job.job.dump_folder, checkpoint_folder(job)
    by = f" by signal {signal}; the same command goes on" if signal is not None and job.checkpoint.enable else ""
    lines.say(f"{'stopped' if signal is not None else 'ended'} at step {step:,} of {job.training.steps:,}{by}", "bold")
    known = complete_steps(folder) if job.checkpoint.enable else {}
    if known:
        lines.say(f"checkpoint  {known[max(known)]}")
    lines.say(f"record      {os.path.join(dump, RUN)}, {METRICS}")
    lines.say(f"report      mosaic-photon report {shlex.quote(dump)}")
    if known and job.job.config_file:
        words = shlex.join([folder, "--job", job.job.config_file])
        lines.say(f"text        mosaic-photon generate {words} --prompt 'Once'")


def versions() -> dict[str, str]:
    """Of Python, of what trains and of what it trains by."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | ({"cuda": str(torch.version.cuda)} if torch.version.cuda else {})


def machine(trainer: RunningTrainer) -> dict[str, Any]:
    """This rank's host and device, and the launcher's names for the run."""
    device = platform.processor() or platform.machine() if ON_CPU else torch.cuda.get_device_name(trainer.device)
    names = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "LOCAL_WORLD_SIZE")
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "device": device,
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        **{name: os.environ[name] for name in names if name in os.environ},
    }


def layout(trainer: RunningTrainer, parameters: int) -> dict[str, Any]:
    """Ranks, parallel degrees, the model's size, and how a step is made of micro-batches."""
    dims = trainer.parallel_dims
    return {
        "ranks": dims.world_size,
        **degrees(dims),
        "parameters": parameters,
        "gradient_accumulation_steps": trainer.gradient_accumulation_steps,
    }


def data(loader: DataSpecDataLoader, estimated: Estimate) -> dict[str, Any]:
    """Streams and their share of an epoch, what a step takes, and what fixes which samples it gets."""
    batch = loader.layout.global_batch
    return {
        "streams": [{**asdict(stream), "tokens": stream.tokens} for stream in estimated.streams],
        "steps_per_epoch": loader.steps_per_epoch,
        "samples_per_step": batch,
        "tokens_per_step": batch * estimated.seq_len,
        "order": loader.fingerprint,
    }


def compiled() -> float:
    """Seconds that torch has compiled for in this process."""
    utils = sys.modules.get("torch._dynamo.utils")
    return float(utils.calculate_time_spent()["total_wall_time"]) if utils is not None else 0.0
