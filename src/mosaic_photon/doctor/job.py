"""Whether a job's configs fit each other, this machine and the data that they name."""

from __future__ import annotations

import copy
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_photon.doctor import Finding, tried
from mosaic_photon.errors import ConfigError
from mosaic_photon.names import human_size

if TYPE_CHECKING:
    from mosaic_photon.job.data_config import DataConfig
    from mosaic_photon.job.facts import Facts
    from mosaic_photon.job.tables import MosaicJobConfig
    from mosaic_photon.titan.spec import TrainSpec

PROBE_BYTES = 64 << 20
SLOW_BYTES_PER_S = 100e6
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "beegfs", "gpfs", "fuse", "ceph", "9p")


def check_data(data: DataConfig) -> Iterator[Finding]:
    """Each stream of each loader: its index, its cache folder's room; then each cache disk's speed."""
    from mosaic_photon.job.data_config import streams_of

    disks: dict[int, Path] = {}
    for kind, loader in data.loaders():
        for name in streams_of(loader["dataset"]):
            try:
                yield from _check_stream(f"{kind} {name}", _only_stream(loader, name), disks)
            except ConfigError as error:
                yield Finding("fail", f"{kind} {name}", str(error))
    for folder in disks.values():
        yield check_disk(folder)


def check_job(job: MosaicJobConfig, nodes: int, processes_here: int) -> Iterator[Finding]:
    """What the job itself checks before its first step, by the same list; what can be told apart is told apart."""
    from mosaic_photon.job.remarks import remarks_on
    from mosaic_photon.train_spec import facts_of, spec_of_job

    try:
        spec = spec_of_job(job)
    except ConfigError as error:
        yield Finding("fail", "model", str(error))
        return
    with _as_first_rank(nodes * processes_here, processes_here):
        facts = facts_of(job, spec)
        failed = _mistakes(job, facts)
    yield from (Finding("warn", "settings", remark) for remark in remarks_on(job, facts))
    yield from (Finding("warn", "tokenizer", note) for note in _tokenizer_notes(job))
    yield from _judged("tokenizer", failed, lambda: f"{job.model.hf_assets_path} fits the model's vocabulary")
    yield from _judged("outputs", failed, lambda: _outputs(job))
    yield from _judged("callbacks", failed, lambda: _callbacks(job))
    yield from _judged("layout", failed, lambda: _layout(job, facts.world_size))
    if job.compile.enable:
        yield check_compiler()
    if not failed:
        yield from tried("model", lambda: _model(job, facts))
        warnings: list[str] = []
        yield from tried("dry run", lambda: _dry_run(job, spec, facts.world_size, warnings))
        yield from (Finding("warn", "padding", text) for text in warnings)


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
        return Finding("fail", "cache disk", f"{folder}: cannot write {human_size(PROBE_BYTES)}: {error.strerror}")
    finally:
        probe.unlink(missing_ok=True)
    rate = PROBE_BYTES / (time.perf_counter() - start)
    text = f"{folder} ({kind}): writes {human_size(rate)}/s, {human_size(shutil.disk_usage(folder).free)} free"
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        return Finding("warn", "cache disk", f"{text}: a shared file system; set local to a disk of this machine")
    if rate < SLOW_BYTES_PER_S:
        return Finding("warn", "cache disk", f"{text}: slow; set local to a faster disk")
    return Finding("ok", "cache disk", text)


def _check_stream(subject: str, loader: dict[str, Any], disks: dict[int, Path]) -> Iterator[Finding]:
    from mosaic_photon.dataloader.inspection import open_dataset, why_unreached

    start = time.perf_counter()
    dataset = open_dataset(loader)
    seconds = time.perf_counter() - start
    source, cache = dataset.cache.sources[0], dataset.cache
    missing = [slot.shard for slot in map(cache.slot, range(len(dataset.shards))) if not slot.is_here()]
    stored = sum(int(index.stored_bytes.sum()) for index in dataset.shards.indexes)
    text = f"{len(dataset.shards):,} shards, {dataset.num_samples:,} samples, {human_size(stored)}"
    if source.data or source.remote is None:
        cache.check()
        yield Finding("ok", subject, f"{source.data or source.folder}: {text}")
    if source.remote is None:
        return
    if not source.data:
        unreached = why_unreached(source)
        reach = f"index in {seconds:.2f} s" if unreached is None else f"can't be reached ({unreached}), only the cache"
        text = f"{source.remote}: {reach}; {text}, {len(missing):,} shards to fetch"
        yield Finding("ok" if unreached is None else "fail" if missing else "warn", subject, text)
    yield check_room(f"{subject} cache", source.folder, sum(shard.max_bytes for shard in missing), cache.limit)
    disks.setdefault(source.folder.stat().st_dev, source.folder)
    cache.close()


def check_room(subject: str, folder: Path, needed: int, limit: int | None) -> Finding:
    """Whether what is still to be fetched, or the cache limit if that is less, fits on the disk."""
    needed = min(needed, limit) if limit is not None else needed
    free = shutil.disk_usage(folder).free
    text = f"{folder}: needs {human_size(needed)}, {human_size(free)} free"
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


def _model(job: MosaicJobConfig, facts: Facts) -> str:
    """Its size, counted on a model without memory, and what its training state takes on disk."""
    count = sum(parameter.numel() for parameter in facts.model.parameters())
    return f"{job.model.name} {job.model.flavor}: {count:,} parameters, {human_size(12 * count)} with two fp32 moments"


def _tokenizer_notes(job: MosaicJobConfig) -> list[str]:
    from mosaic_photon.tokenizers import notes_on, special_tokens

    return notes_on(special_tokens(job.model.hf_assets_path))


def _outputs(job: MosaicJobConfig) -> str:
    from mosaic_photon.files import existing

    free = shutil.disk_usage(existing(job.job.dump_folder)).free
    return f"{job.job.dump_folder} can be written; {human_size(free)} free"


def _callbacks(job: MosaicJobConfig) -> str:
    from mosaic_photon.callbacks.registry import build_callbacks

    return ", ".join(build_callbacks(job.callbacks)) or "none"


def _mistakes(job: MosaicJobConfig, facts: Facts) -> dict[str, str]:
    """What the job's list of checks finds, by subject: those that can be told apart, and the first of all others."""
    from mosaic_photon.callbacks.registry import check_callbacks
    from mosaic_photon.job import checks
    from mosaic_photon.job.machine_checks import check_outputs, check_tokenizer
    from mosaic_photon.train_spec import PART_CHECKS

    apart: dict[checks.Check, str] = {
        check_tokenizer: "tokenizer",
        check_outputs: "outputs",
        check_callbacks: "callbacks",
    }
    failed: dict[str, str] = {}
    for check in checks.in_order(checks.ORDER, PART_CHECKS):
        subject = apart.get(check, "layout")
        try:
            if subject not in failed:
                check(job, facts)
        except ConfigError as error:
            failed[subject] = str(error)
    return failed


def _judged(subject: str, failed: dict[str, str], fine: Callable[[], str]) -> Iterator[Finding]:
    """The mistake found with this subject, or how it is."""
    if subject in failed:
        yield Finding("fail", subject, failed[subject])
    else:
        yield from tried(subject, fine)


def _layout(job: MosaicJobConfig, world_size: int) -> str:
    from mosaic_photon.job.layout_checks import data_parallel_degree
    from mosaic_photon.titan.layouts import parallel_dims, precision_line

    data_parallel, micro = data_parallel_degree(job, world_size), job.training.local_batch_size
    given = job.training.global_batch_size
    batch = given if given > 0 else micro * data_parallel
    steps = batch // (micro * data_parallel)
    return (
        f"{world_size} process(es), {data_parallel} data-parallel; {batch} samples a step = "
        f"{data_parallel} x {micro} x {steps} micro-batches; {precision_line(job, parallel_dims(job, world_size))}"
    )


def _dry_run(job: MosaicJobConfig, spec: TrainSpec, world_size: int, warnings: list[str]) -> str:
    """Do as the first rank what the job does with its data, optimizer and schedule before it builds the model."""
    from mosaic_photon.dataloader.padding import estimate
    from mosaic_photon.job.layout_checks import data_parallel_degree
    from mosaic_photon.train_spec import data_of_job

    job.mosaic.download_patience_seconds = 0  # a remote that does not answer is a finding
    with _as_first_rank(world_size, 1), ExitStack() as cleanup:  # alone here: it looks at every shard
        data = data_of_job(spec, job, data_parallel_degree(job, world_size))
        cleanup.callback(data.close)
        if warning := estimate(data.loader.data, job.training.seq_len).warning:
            warnings.append(warning)
        next(iter(data.loader))
        rows = data.loader.reads(job.training.steps)
        return "; ".join(["one batch was read", *(f"{name}: {value}" for name, value in rows)])


@contextmanager
def _as_first_rank(world_size: int, processes_here: int) -> Iterator[None]:
    """The environment that torchrun gives the first process."""
    before = dict(os.environ)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(processes_here))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


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
