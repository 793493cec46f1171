"""What is so of this machine whatever the job: packages, devices, backend, shared memory, limits."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import resource
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mosaic_photon import foundry
from mosaic_photon.doctor import Finding
from mosaic_photon.errors import ConfigError
from mosaic_photon.names import human_size

OVERRIDDEN = {"torch", "torchvision", "mosaicml-streaming", "fsspec"}
"""Packages whose upper bounds in llm-foundry and Composer are overridden; pyproject.toml has the reasons."""

SHM = Path("/dev/shm")
SHM_ENOUGH = 1 << 30  # bytes
FILES_ENOUGH = 4096


def check_machine(processes_here: int, nodes: int = 1) -> Iterator[Finding]:
    """All findings that need no config."""
    yield check_python()
    yield from check_versions()
    yield check_foundry()
    yield from check_bounds()
    yield check_devices(processes_here)
    yield check_backend()
    yield check_host_name(nodes)
    yield check_shm(SHM)
    yield check_left_overs(SHM)
    yield check_open_files()


def check_python() -> Finding:
    version = platform.python_version()
    if (3, 11) <= tuple(map(int, version.split(".")[:2])) <= (3, 13):
        return Finding("ok", "python", version)
    return Finding("fail", "python", f"{version}: use 3.11, 3.12 or 3.13")


def check_versions() -> Iterator[Finding]:
    """Whether TorchTitan and the packages that this one declares are here, in versions that it runs on."""
    from packaging.requirements import Requirement

    from mosaic_photon.titan.releases import installed

    try:
        installed()
        good = [f"torchtitan {_version('torchtitan')}"]
    except ConfigError as error:
        yield Finding("fail", "versions", str(error))
        good = []
    for wanted in map(Requirement, metadata.requires("mosaic-photon") or []):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        here = _version(wanted.name)
        if here is None:
            yield Finding("fail", "versions", f"{wanted.name} is not installed: pip install '{wanted}'")
        elif not wanted.specifier.contains(here, prereleases=True):
            text = f"{wanted.name} is {here}, where {wanted} was tested: pip install '{wanted}'"
            yield Finding("warn", "versions", text)
        elif wanted.specifier:
            good.append(f"{wanted.name} {here}")
    yield Finding("ok", "versions", ", ".join(good))


def check_foundry() -> Finding:
    """Whether llm-foundry and Composer are here with all that they need, and the command that brings them."""
    from packaging.requirements import Requirement

    subject, own = "llm-foundry and Composer", ("llm-foundry", "mosaicml")
    if None in map(_version, own):
        uses = "mpt_mup_mosaic, [callbacks], and data that are not tokens"
        return Finding("ok", subject, f"not installed; for {uses}: {foundry.INSTALL}")
    pins = [Requirement(line) for line in foundry.PINS.read_text().splitlines() if not line.startswith("#")]
    needed = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate()]
    if lacking := [name for name in needed if _version(name) is None]:
        return Finding("warn", subject, f"they need {', '.join(lacking)}: {foundry.INSTALL}")
    return Finding("ok", subject, ", ".join(f"{name} {_version(name)}" for name in own))


def check_bounds() -> Iterator[Finding]:
    """Bounds that the upstream packages set on each other and that do not hold here; some do not on purpose."""
    from packaging.requirements import Requirement

    on_purpose = []
    for package in ("llm-foundry", "mosaicml", "mosaicml-streaming", "torchtitan"):
        for line in metadata.requires(package) or [] if _version(package) else []:
            wanted = Requirement(line)
            here = _version(wanted.name)
            applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if not applies or here is None or wanted.specifier.contains(here, prereleases=True):
                continue
            text = f"{package} asks for {wanted.name}{wanted.specifier}, has {here}"
            if wanted.name in OVERRIDDEN:
                on_purpose.append(text)
            else:
                yield Finding("warn", "bounds", f"{text}: {_mending(package)}")
    if on_purpose:
        yield Finding("ok", "bounds", f"overridden on purpose: {'; '.join(on_purpose)}")


def check_devices(processes_here: int) -> Finding:
    """Whether each process of this machine has a device of its own."""
    import torch

    from mosaic_photon.compat.cpu_device_type import ON_CPU

    cores = len(os.sched_getaffinity(0))
    if ON_CPU:
        threads = f"{torch.get_num_threads()} threads each on {cores} cores"
        text = f"no accelerator: {processes_here} process(es) with {threads}"
        if processes_here * torch.get_num_threads() > cores and processes_here > 1:
            return Finding("warn", "devices", f"{text}: set OMP_NUM_THREADS={max(1, cores // processes_here)}")
        return Finding("ok", "devices", text)
    count = torch.accelerator.device_count()
    if processes_here > count:
        text = f"{processes_here} processes on this machine, but {count} device(s): torchrun --nproc_per_node={count}"
        return Finding("fail", "devices", text)
    if not torch.cuda.is_available():
        return Finding("ok", "devices", f"{count} x {torch.accelerator.current_accelerator()}")
    properties = torch.cuda.get_device_properties(0)
    text = f"{count} x {properties.name}, {human_size(properties.total_memory)} each, CUDA {torch.version.cuda}"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding("warn", "devices", f"{text}: no bfloat16; set training.mixed_precision_param to float32")
    return Finding("ok", "devices", text)


def check_backend() -> Finding:
    """Whether the job's communication backend starts and reduces, with one process."""
    import torch
    import torch.distributed as dist

    from mosaic_photon.compat.cpu_device_type import ON_CPU

    device = "cpu" if ON_CPU else torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    backend = dist.get_default_backend_for_device(device)
    try:
        dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
        value = torch.ones(1, device=device)
        dist.all_reduce(value)
        dist.destroy_process_group()
    except RuntimeError as error:
        return Finding("fail", "backend", f"{backend} does not start on {device}: {str(error).splitlines()[0]}")
    return Finding("ok", "backend", f"{backend} on {device}")


def check_host_name(nodes: int) -> Finding:
    """Whether the processes of this machine, and those of other ones, can find it by its name."""
    name = os.environ.get("MASTER_ADDR") or socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        what = "MASTER_ADDR" if "MASTER_ADDR" in os.environ else "this host's name"
        text = f"{what} {name!r} has no address ({error}): add it to /etc/hosts, or set MASTER_ADDR to an address"
        return Finding("warn", "host name", text)
    if nodes > 1 and address.startswith("127."):
        text = f"{name} is {address} here, where other machines cannot reach it: mend /etc/hosts, or name the network "
        return Finding("warn", "host name", text + "interface in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME")
    return Finding("ok", "host name", f"{name} is {address}")


def check_shm(folder: Path) -> Finding:
    """Data-loading workers hand batches over through shared memory; containers often have 64 MiB of it."""
    usage = shutil.disk_usage(folder)
    text = f"{folder}: {human_size(usage.free)} free of {human_size(usage.total)}"
    if usage.free < SHM_ENOUGH:
        return Finding(
            "warn",
            "shared memory",
            f"{text}: too little for worker processes (num_workers > 0); start the container with --shm-size=8g, or on "
            "Kubernetes mount an emptyDir with medium Memory there",
        )
    return Finding("ok", "shared memory", text)


def check_left_overs(folder: Path) -> Finding:
    """Segments of this user that no process of this user has open or mapped: left by jobs that were killed."""
    sizes = _sizes_of_own_files(folder)
    left = sorted(sizes.keys() - _used_files(folder))
    if not left:
        return Finding("ok", "left-overs", f"none in {folder}")
    total = sum(sizes[path] for path in left)
    names = " ".join(map(str, left[:4])) + (" ..." if len(left) > 4 else "")
    text = f"{len(left)} segment(s), {human_size(total)}, that no process of yours uses: rm {names}"
    return Finding("warn", "left-overs", text)


def check_open_files() -> Finding:
    """Each rank keeps shards and sockets open."""
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < FILES_ENOUGH:
        text = f"at most {limit} per process: run `ulimit -n {min(highest, 65536)}` first"
        return Finding("warn", "open files", text)
    return Finding("ok", "open files", f"at most {limit:,} per process")


def _sizes_of_own_files(folder: Path) -> dict[Path, int]:
    """Bytes of each of this user's files in a folder where files come and go."""
    sizes = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # gone meanwhile
            found = path.stat()
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
                sizes[path] = found.st_size
    return sizes


def _used_files(folder: Path) -> set[Path]:
    """Files of a folder that a process, as far as this user may look, has open or mapped."""
    import psutil

    used: set[Path] = set()
    for process in psutil.process_iter():
        try:
            paths = [entry.path for entry in process.memory_maps()] + [file.path for file in process.open_files()]
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        used.update(Path(path) for path in paths if path.startswith(f"{folder}/"))
    return used


def _mending(package: str) -> str:
    """The command that gives a package what it asks for."""
    return foundry.INSTALL if package in ("llm-foundry", "mosaicml") else f"pip install --upgrade {package}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
