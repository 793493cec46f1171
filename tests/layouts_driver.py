"""Runs jobs one after the other, each in fresh ranks that a fork server makes: imports are paid once for all.

The agent itself is not forked: its rendezvous has threads, whose locks a rank would inherit (see ranks_job.py).

Usage: layouts_driver.py PLAN.json. The plan is a list of {"name", "ranks", "arguments", "log"}; `arguments` are those
of `train_with_mosaic`. With a "public_name" TorchTitan's own Trainer trains, see `stock_trainer`. Prints one JSON line
a job: its name, its exit code or how its ranks failed, and seconds.
"""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mosaic_photon import titan
from mosaic_photon.train_with_mosaic import main

PRELOADED = [
    "llmfoundry.models", "torch.utils.tensorboard", "stock_trainer", "mosaic_photon.callbacks.job_state",
    "mosaic_photon.callbacks.optimizer_monitor", "mosaic_photon.callbacks.composer_view",
    "mosaic_photon.models.mpt_mup.hf",
    "mosaic_photon.models.mpt_mup.model", "mosaic_photon.models.mpt_mup.parallelize",
    titan.release().build_trainer.__module__, "mosaic_photon.train.loop", "mosaic_photon.train.summary",
]  # fmt: skip
"""What a job imports."""


def rank(arguments: list[str], log: str, public_name: str) -> int:
    """One rank's life; what it prints goes to `log`."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # TorchTitan sleeps two seconds after the last step.
    titans = sys.modules[titan.release().build_trainer.__module__].Trainer.__module__
    sys.modules[titans].time = SimpleNamespace(perf_counter=time.perf_counter, sleep=lambda seconds: None)
    if not public_name:
        return main(arguments)
    import stock_trainer  # on 0.2.2, where TorchTitan finds models by name

    return stock_trainer.train(arguments, public_name)


def launch(job: dict[str, Any]) -> int | str:
    """Run one job; returns its exit code, or the failure of the ranks that failed."""
    config = LaunchConfig(
        run_id=job["name"],
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job["ranks"],
        rdzv_endpoint="localhost:0",
        rdzv_backend="c10d",
        rdzv_configs={"timeout": 60},
        max_restarts=0,
        monitor_interval=0.05,
        start_method="forkserver",
    )
    try:
        return max(elastic_launch(config, rank)(job["arguments"], job["log"], job.get("public_name", "")).values())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(PRELOADED)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        begin = time.monotonic()
        result = launch(job)
        line = {"name": job["name"], "result": result, "seconds": round(time.monotonic() - begin, 1)}
        print(json.dumps(line), flush=True)
