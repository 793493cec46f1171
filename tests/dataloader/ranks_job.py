"""Real ranks on a device mesh: a fork server makes them, so that the imports are paid once for several launches.

The agent itself must not be forked: its rendezvous has threads, and a rank forked while one of them held a lock waited
for it for ever, in the constructor of its store.

Usage: ranks_job.py PLAN.json. The plan is a list of launches, each {"world", "tp", "pp", "local", "steps", "data"};
each goes on from the checkpoint of the last. Writes the samples of every step to OUT, one JSON line a launch.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mds_data import ASSETS, flat, job, numbers
from mosaic_photon.dataloader.build import build_mosaic_dataloader
from mosaic_photon.titan.layouts import ParallelDims
from mosaic_photon.titan.parts import HuggingFaceTokenizer


def rank(launch: dict[str, Any], checkpoint: str) -> list[list[int]]:
    """One rank's life: mesh, loader, checkpoint, steps, checkpoint. Returns the samples of each step."""
    of_the_launcher = shared_memory()
    dist.init_process_group("gloo")
    tp, pp = launch.get("tp", 1), launch.get("pp", 1)
    shard = launch["world"] // (tp * pp)
    dims = ParallelDims(dp_replicate=1, dp_shard=shard, cp=1, tp=tp, pp=pp, ep=1, etp=1, world_size=launch["world"])
    dims.build_mesh()
    mesh = dims.get_optional_mesh("batch") if dims.dp_enabled else None
    dp, dp_rank = (mesh.size(), mesh.get_local_rank()) if mesh is not None else (1, 0)
    if "cache" in launch:  # each node has its own
        launch["data"]["local"] = launch["cache"].format(node=os.environ["GROUP_RANK"])
    config = job(launch["data"], local=launch["local"], batch=launch["batch"])
    loader = build_mosaic_dataloader(dp, dp_rank, HuggingFaceTokenizer(str(ASSETS)), config)
    if Path(checkpoint).exists():
        state = {"dataloader": loader.state_dict()}
        dcp.load(state, checkpoint_id=checkpoint)
        loader.load_state_dict(state["dataloader"])
    steps, batches = [], iter(loader)
    for step in range(launch["steps"]):
        if launch.get("fail") == [step, dist.get_rank()]:
            sys.exit("this rank fails")
        mine = flat(numbers(next(batches)) for _ in range(launch["batch"] // (dp * launch["local"])))
        everyone: list[Any] = [None] * launch["world"]
        dist.all_gather_object(everyone, (dp_rank, mine))
        for other_dp_rank, other in everyone:
            assert (other == mine) == (other_dp_rank == dp_rank), "ranks of a group differ, or groups agree"
        steps.append(sorted(flat(dict(everyone).values())))
        if "sign" in launch:  # that the job has begun to read
            Path(checkpoint).with_name(launch["sign"]).touch()
        if "pause" in launch:
            time.sleep(launch["pause"])
    left = shared_memory() - of_the_launcher
    assert not left, f"a killed job would leave these behind: {left}"
    dcp.save({"dataloader": loader.state_dict()}, checkpoint_id=checkpoint)
    loader.close()
    dist.destroy_process_group()
    return steps


def shared_memory() -> set[str]:
    """Named shared memory that this process maps, by path."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in maps if "/dev/shm" in line and not line.endswith("(deleted)")}


def launch(spec: dict[str, Any], checkpoint: str) -> list[list[int]]:
    nodes = spec.get("nodes", 1)
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=spec["world"] // nodes,
        run_id=spec.get("run_id", "job"),
        rdzv_endpoint=spec.get("endpoint", "localhost:0"),
        rdzv_backend="c10d",
        # Otherwise the agents find out which of them keeps the store, and one may end while the other needs it.
        rdzv_configs={"timeout": 60, "is_host": spec.get("is_host", True)},
        max_restarts=0,
        monitor_interval=0.05,
        start_method="forkserver",
    )
    return next(iter(elastic_launch(config, rank)(spec, checkpoint).values()))


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["mosaic_photon.dataloader.build", "mosaic_photon.titan.parts", "mds_data"])
    plan = json.loads(Path(sys.argv[1]).read_text())
    for spec in plan["launches"]:
        begin = time.monotonic()
        try:
            result: Any = launch(spec, plan["checkpoint"])
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        line = {"result": result, "seconds": time.monotonic() - begin}
        with open(plan["out"], "a") as out:
            out.write(json.dumps(line) + "\n")
