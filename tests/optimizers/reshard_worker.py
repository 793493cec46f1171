"""Run by torchrun: train a model on as many ranks as there are, from a checkpoint if there is one, and save both ways.

reshard_worker.py STEPS OUT [CHECKPOINT]: train to STEPS; every three write OUT/N/checkpoint (DCP), weights.pt (whole
tensors) and groups.json.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn as nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard

from mosaic_photon.compat.gloo_fsdp_reduction import force_sum_reduction
from mosaic_photon.job.tables import Optimizer as OptimizerConfig
from mosaic_photon.optimizers.builder import build_optimizers
from mosaic_photon.titan.layouts import ParallelDims
from mosaic_photon.titan.parts import OptimizersContainer


def main(steps: str, out: str, checkpoint: str | None = None) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3))  # 7 and 3 split unevenly
    world = dist.get_world_size()
    if world > 1:
        fully_shard(model)
        force_sum_reduction(model)
    config = OptimizerConfig(name="QHADOPT", lr=0.05, weight_decay=0.01, decouple=True, no_decay=["bias"])
    optimizers = build_optimizers([model], config, ParallelDims(1, world, 1, 1, 1, 1, 1, world_size=world))
    done = 0
    if checkpoint:
        state = {"model": get_model_state_dict(model), "optimizer": optimizers}
        dcp.load(state, checkpoint_id=checkpoint)
        set_model_state_dict(model, state["model"])
        done = int(next(iter(optimizers.optimizers[0].state.values()))["step"])
    for step in range(done, int(steps)):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        optimizers.zero_grad()
        model(x).square().mean().backward()  # every rank sees the whole batch, so the mean is the whole batch's
        optimizers.step()
        if (step + 1) % 3 == 0:
            save(model, optimizers, Path(out) / str(step + 1))
    dist.destroy_process_group()


def save(model: nn.Module, optimizers: OptimizersContainer, folder: Path) -> None:
    dcp.save({"model": get_model_state_dict(model), "optimizer": optimizers}, checkpoint_id=folder / "checkpoint")
    whole = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in model.state_dict().items()}
    if dist.get_rank() == 0:
        torch.save(whole, folder / "weights.pt")
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizers.optimizers[0].param_groups]
        (folder / "groups.json").write_text(json.dumps(groups))


if __name__ == "__main__":
    main(*sys.argv[1:])
