"""A job from Python: what the command runs, in this process, which is left as it was."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.load import load_job
from mosaic_photon.job.source import Source
from mosaic_photon.train_with_mosaic import be_one_process, free_port, run

_calls = itertools.count()


def train_job(job: Source, data: Source, *flags: str) -> dict[str, Any]:
    """Train a job to its end in this process, as `mosaic-photon train` does; under torchrun each rank calls it.

    Args:
        job: a job config: its path, or its tables as a dict.
        data: a data config: the same.
        flags: the job's fields, which win over `job`: "--training.steps=20".

    Returns:
        What was logged last: "step", "loss", and all that TensorBoard and W&B get, by its name there ("grad_norm",
        "throughput(tps)", ...). Empty where nothing was, as of a job that had been trained to its end before.

    Raises:
        ConfigError: a mistake in the job, or this process can't run one.
        NotFiniteError: a step's loss or gradient norm is not finite.
        KeyboardInterrupt, SystemExit: Ctrl-C, or SIGTERM, has stopped the job between two steps. With
            checkpoint.enable the next call goes on from there.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("train_job runs in a process's main thread only, where signals can stop it.")
    with _left_as_it_was():
        be_one_process()
        _join_anew(next(_calls))
        try:
            ended = run(load_job(job, data, list(flags)), started=time.time())
        except SystemExit as stopped:  # by a signal, before the first step
            if stopped.code == 128 + signal.SIGINT:
                raise KeyboardInterrupt from None
            raise
    if ended.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if ended.signal is not None:
        raise SystemExit(128 + ended.signal)
    return ended.metrics


def _join_anew(call: int) -> None:
    """Let the ranks of this call, not the process's first, meet at another port: what an earlier one told is stale.

    Raises:
        ConfigError: there is a process group already, and TorchTitan makes its own.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        raise ConfigError("train_job makes a process group of its own: destroy the one that is there before.")
    if call == 0 or "MASTER_PORT" not in os.environ:
        return
    port = int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's, which outlives the process group
        store = dist.TCPStore(os.environ["MASTER_ADDR"], port)  # type: ignore[attr-defined]
        key = f"mosaic_photon/{os.environ['TORCHELASTIC_RESTART_COUNT']}/call {call}"
        if os.environ["RANK"] == "0":
            store.set(key, str(free_port()))
        os.environ["MASTER_PORT"] = store.get(key).decode()
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    else:
        os.environ["MASTER_PORT"] = str(port + call)


@contextmanager
def _left_as_it_was() -> Iterator[None]:
    """Afterwards environment, logging, garbage collection and determinism are as they were before."""
    import torch

    environment, root, cudnn = dict(os.environ), logging.getLogger(), torch.backends.cudnn
    with ExitStack() as undo:
        undo.callback(_set_environment, environment)
        undo.callback(root.setLevel, root.level)
        undo.callback(root.handlers.__setitem__, slice(None), root.handlers[:])
        undo.callback(gc.collect)
        undo.callback(gc.enable if gc.isenabled() else gc.disable)
        strict, lenient = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        undo.callback(torch.use_deterministic_algorithms, strict, warn_only=lenient)
        undo.callback(setattr, cudnn, "deterministic", cudnn.deterministic)
        undo.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
        yield


def _set_environment(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
