"""The work done by a cluster of Ray: a part is a task, and this process, Ray's driver, holds records only.

A part whose worker or node dies is done again. Before the first, each node is asked whether it has what a part needs.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mosaic_photon.errors import ConfigError
from mosaic_photon.prepare.pool import Finished, in_flight
from mosaic_photon.prepare.record import parse_record
from mosaic_photon.stores import is_url, read

RETRIES = 5
"""Of a part whose worker or node died."""
STORE_BYTES = 100 << 20
"""Of shared memory, for a cluster that is made here: no data go through it."""
REACH_S = 10
ANSWER_S = 120
SIZE_S = 5
"""How long the number of CPUs is taken to be what it was."""
PACKAGES = ("mosaic-photon", "tokenizers", "mosaicml-streaming")


@dataclass(frozen=True)
class Needs:
    """What a part needs of the node that it is done on."""

    versions: dict[str, str]
    tokenizer: tuple[str, str]
    """Its file and that file's sha256."""
    sources: list[tuple[str, int]]
    """A few, with their bytes."""
    record: str
    """The file that says what the work is."""

    def missing(self) -> str | None:
        """What is not so on this node."""
        for name, wanted in self.versions.items():
            if version(name) != wanted:
                return f"has {name} {version(name)}, here it is {wanted}"
        file, digest = self.tokenizer
        if not os.path.isfile(file):
            return f"has no tokenizer at {file}"
        if hashlib.sha256(Path(file).read_bytes()).hexdigest() != digest:
            return f"has another tokenizer at {file}"
        try:
            for path, size in self.sources:
                if is_url(path):
                    read(path, 0, min(1, size))
                elif not os.path.isdir(path) and os.path.getsize(path) != size:
                    return f"has another file at {path}"
            parse_record(self.record)
        except (OSError, ConfigError) as error:
            return f"cannot read what is read here ({error}): sources and --out have to be where all nodes see them"
        return None


class Cluster:
    """An executor: see `pool.Executor`. Between entering and leaving this process is connected to Ray."""

    def __init__(self, address: str, workers: int, needs: Needs) -> None:
        """`address` as `ray.init` takes it, "local" for a cluster of this machine with so many workers."""
        self._address, self._workers, self._needs = address, workers, needs
        self._size = (0.0, 0)

    def __enter__(self) -> Cluster:
        _connect(self._address, self._workers)
        try:
            _ask_nodes(self._needs)
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    @property
    def workers(self) -> int:
        asked, size = self._size
        if time.monotonic() - asked > SIZE_S or not size:
            size = int(ray.cluster_resources().get("CPU", 0))
            self._size = time.monotonic(), size
        return size

    def run(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], finished: Finished) -> None:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_one_thread)

        def ended(pending: list[Any]) -> Iterable[Any]:
            ray.wait(pending)
            return ray.wait(pending, num_returns=len(pending), timeout=0)[0]

        handles = in_flight(calls, lambda: 2 * max(1, self.workers), lambda call: task.remote(function, call), ended)
        for position, handle in handles:
            finished(position, _result(handle))


def _one_thread(function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return function(*call)


def _result(handle: Any) -> Any:
    try:
        return ray.get(handle)
    except RayTaskError as error:
        if isinstance(error.cause, ConfigError | OSError):
            raise error.cause from error
        raise  # a fault of ours, with the worker's traceback
    except RayError as error:
        raise ConfigError(
            f"Ray gave up a part after {RETRIES + 1} tries. What is finished is kept; the same command goes on from"
            f" there: {error}"
        ) from error


def _connect(address: str, workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    given: dict[str, Any] = {"address": address}
    if address == "local":
        given |= {"num_cpus": workers, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _reach(address)
        ray.init(**given, log_to_driver=False, logging_level="ERROR")
    except (RuntimeError, ValueError, OSError) as error:
        python = f"this one is Python {sys.version.split()[0]} with Ray {ray.__version__}"
        token = " If it asks for a token, set RAY_AUTH_MODE=token." if "RAY_AUTH_MODE" not in os.environ else ""
        raise ConfigError(f"--ray {address}: no connection to a cluster ({python}): {error}.{token}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _reach(address: str) -> None:
    """Raise OSError where nobody listens, which Ray finds after minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), REACH_S).close()


def _question() -> Callable[[dict[str, Any]], str | None]:
    """What asks a node; made here, so that it travels whole, to nodes too that lack this package."""

    def missing(needs: dict[str, Any]) -> str | None:
        try:
            from mosaic_photon.prepare.on_ray import Needs
        except ImportError as error:
            return f"cannot import mosaic-photon ({error})"
        return Needs(**needs).missing()

    return missing


def _ask_nodes(needs: Needs) -> None:
    """Raise ConfigError with what nodes lack."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    task = ray.remote(num_cpus=0, max_retries=1)(_question())
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        handle = task.options(scheduling_strategy=there).remote(vars(needs))
        asked[node["NodeManagerAddress"], node["NodeID"]] = handle
    end, lacking = time.monotonic() + ANSWER_S, []
    for (address, name), handle in asked.items():
        try:
            missing = ray.get(handle, timeout=max(0, end - time.monotonic()))
        except GetTimeoutError:
            missing = f"has not answered for {ANSWER_S} s"
        except RayTaskError:
            raise
        except RayError:
            continue  # it has left
        if missing:
            lacking.append(f"node {name[:8]} at {address} {missing}")
    if lacking:
        raise ConfigError(f"the cluster cannot do this work: {'; '.join(lacking[:3])}{', ...' * (len(lacking) > 3)}")
