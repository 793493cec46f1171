"""Whether a job's configs fit each other, this machine and the data that they name."""

from __future__ import annotations

import copy
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_photon.doctor.finding import Finding, size, tried
from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    from torchtitan.protocols.train_spec import TrainSpec

    from mosaic_photon.dataloader.config import DataConfig
    from mosaic_photon.job_config import MosaicJobConfig

PROBE_BYTES = 64 << 20
SLOW_BYTES_PER_S = 100e6
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "beegfs", "gpfs", "fuse", "ceph", "9p")


def check_data(data: DataConfig) -> Iterator[Finding]:
    """Each stream of each loader: its index, its cache folder's room; then each cache disk's speed."""
    from mosaic_photon.dataloader.config import streams_of

    disks: dict[int, Path] = {}
    for kind, loader in (("train", data.train), ("eval", data.eval)):
        for name in streams_of(loader["dataset"]) if loader else ():
            try:
                yield from _check_stream(f"{kind} {name}", _only_stream(loader, name), disks)
            except ConfigError as error:
                yield Finding("fail", f"{kind} {name}", str(error))
    for folder in disks.values():
        yield check_disk(folder)


def check_job(job: MosaicJobConfig, world_size: int) -> Iterator[Finding]:
    """The job's own tables against each other, the machine and the number of processes; then against the data."""
    from mosaic_photon.compat.cpu_device_type import ON_CPU

    from mosaic_photon.train_spec import register_for_job

    try:
        spec = register_for_job(job)
    except ConfigError as error:
        yield Finding("fail", "model", str(error))
        return
    model_args = spec.model_args[job.model.flavor]
    yield from tried("model", lambda: _model(job, spec))
    needed = [*tried("tokenizer", lambda: _tokenizer(job, model_args))]
    needed += tried("layout", lambda: _layout(job, spec, world_size))
    yield from needed
    if ON_CPU:
        yield from tried("cpu", lambda: _cpu(job))
    yield from tried("outputs", lambda: _outputs(job, world_size))
    if job.compile.enable:
        yield check_compiler()
    if all(finding.level == "ok" for finding in needed):
        yield from tried("epochs", lambda: _epochs(job, world_size))


def check_compiler() -> Finding:
    """torch.compile needs a C++ compiler, on GPUs too: Triton builds its launchers with it."""
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        return Finding("fail", "compiler", f"compile.enable = true needs {name}: install it or set CXX")
    return Finding("ok", "compiler", path)


def check_disk(folder: Path) -> Finding:
    """Time one file of PROBE_BYTES, written through to the disk; a shared disk is a warning."""
    kind = _file_system(folder)
    probe = folder / f".mosaic-photon-probe-{os.getpid()}"
    content = os.urandom(PROBE_BYTES)  # nothing that a file system could compress away
    start = time.perf_counter()
    try:
        with open(probe, "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
    except OSError as error:
        return Finding("fail", "cache disk", f"{folder}: cannot write {size(PROBE_BYTES)}: {error.strerror}")
    finally:
        probe.unlink(missing_ok=True)
    rate = PROBE_BYTES / (time.perf_counter() - start)
    text = f"{folder} ({kind}): writes {size(rate)}/s, {size(shutil.disk_usage(folder).free)} free"
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        return Finding("warn", "cache disk", f"{text}: a shared file system; set local to a disk of this machine")
    if rate < SLOW_BYTES_PER_S:
        return Finding("warn", "cache disk", f"{text}: slow; set local to a faster disk")
    return Finding("ok", "cache disk", text)


def _check_stream(subject: str, loader: dict[str, Any], disks: dict[int, Path]) -> Iterator[Finding]:
    from mosaic_photon.inspection import open_dataset

    start = time.perf_counter()
    dataset = open_dataset(loader)
    seconds = time.perf_counter() - start
    source, cache = dataset.cache.sources[0], dataset.cache
    missing = [shard for number, shard in enumerate(dataset.shards) if not cache.is_here(number)]
    stored = sum(shard.stored.bytes for shard in dataset.shards)
    text = f"{dataset.num_shards:,} shards, {dataset.num_samples:,} samples, {size(stored)}"
    if source.remote is None:
        cache.check()
        yield Finding("ok", subject, f"{source.folder}: {text}")
        return
    yield Finding("ok", subject, f"{source.remote}: index in {seconds:.2f} s; {text}, {len(missing):,} shards to fetch")
    yield check_room(f"{subject} cache", source.folder, sum(shard.max_bytes for shard in missing), cache.limit)
    disks.setdefault(source.folder.stat().st_dev, source.folder)
    cache.close()


def check_room(subject: str, folder: Path, needed: int, limit: int | None) -> Finding:
    """Whether what is still to be fetched, or the cache limit if that is less, fits on the disk."""
    needed = min(needed, limit) if limit is not None else needed
    free = shutil.disk_usage(folder).free
    text = f"{folder}: needs {size(needed)}, {size(free)} free"
    if needed > free:
        return Finding("fail", subject, f"{text}: free some, set cache_limit, or move local to another disk")
    return Finding("ok", subject, text)


def _only_stream(loader: dict[str, Any], name: str) -> dict[str, Any]:
    """The loader with one of its streams, so that each can be judged alone, and soon: without retries."""
    loader = copy.deepcopy(loader)
    if loader["dataset"].get("streams"):
        loader["dataset"]["streams"] = {name: loader["dataset"]["streams"][name] | {"download_retry": 0}}
    loader["dataset"]["download_retry"] = 0
    return loader


def _model(job: MosaicJobConfig, spec: TrainSpec) -> str:
    """Its size, counted on a model without memory, and what its training state takes on disk."""
    import torch

    model_args = copy.deepcopy(spec.model_args[job.model.flavor])
    model_args.update_from_config(job)
    with torch.device("meta"):
        model = spec.model_cls(model_args)
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{job.model.name} {job.model.flavor}: {count:,} parameters, {size(12 * count)} with two fp32 moments"


def _tokenizer(job: MosaicJobConfig, model_args: Any) -> str:
    from mosaic_photon.checks import check_tokenizer

    check_tokenizer(job, model_args)
    return f"{job.model.hf_assets_path} fits the model's vocabulary"


def _layout(job: MosaicJobConfig, spec: TrainSpec, world_size: int) -> str:
    from mosaic_photon.checks import check_batch, check_layout

    data_parallel = check_layout(job, world_size)
    check_batch(job, data_parallel)
    pipeline = job.parallelism.pipeline_parallel_degree
    if pipeline > 1 and spec.pipelining_fn is None:
        raise ConfigError(f"parallelism.pipeline_parallel_degree = {pipeline}: {job.model.name} cannot be split")
    micro = job.training.local_batch_size
    batch = job.training.global_batch_size
    batch = batch if batch > 0 else micro * data_parallel
    steps = batch // (micro * data_parallel)
    return (
        f"{world_size} process(es), {data_parallel} data-parallel; {batch} samples a step = "
        f"{data_parallel} x {micro} x {steps} micro-batches"
    )


def _cpu(job: MosaicJobConfig) -> str:
    from mosaic_photon.checks import check_cpu

    check_cpu(job)
    return "nothing asked for that needs an accelerator"


def _outputs(job: MosaicJobConfig, world_size: int) -> str:
    from mosaic_photon.checks import check_outputs

    check_outputs(job, world_size)
    folder = Path(job.job.dump_folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return f"{job.job.dump_folder} can be written; {size(shutil.disk_usage(folder).free)} free"


def _epochs(job: MosaicJobConfig, world_size: int) -> str:
    """Build the first rank's loader: what it refuses, the job would refuse."""
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    from mosaic_photon.checks import check_layout
    from mosaic_photon.dataloader import build_mosaic_dataloader

    tokenizer = HuggingFaceTokenizer(job.model.hf_assets_path)
    loader = build_mosaic_dataloader(check_layout(job, world_size), 0, tokenizer, job)
    next(iter(loader))
    steps = loader.summary.steps_per_epoch
    loader.close()
    epochs = job.training.steps / steps
    return f"{steps:,} steps each; the job's {job.training.steps:,} make {epochs:.2f}. One batch was read"


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, from /proc/mounts: the longest mount point above it."""
    best, kind = "", "unknown"
    path = str(folder.resolve())
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, this_kind, *_ = line.split()
        mount = mount.replace("\\040", " ")
        if len(mount) >= len(best) and (path == mount or path.startswith(mount.rstrip("/") + "/")):
            best, kind = mount, this_kind
    return kind
