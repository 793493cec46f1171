"""Run by torchrun on two ranks: QHADOPT on DTensors in each layout, against the same on plain tensors."""

import itertools

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from mosaic_photon.optimizers import QHADOPT

FORMS = [{"foreach": False}, {"foreach": True}, {"capturable": True}]  # fused takes its shards from the same place
OPTIONS = [{"weight_decay": 0.1}, {"weight_decay": 0.1, "decouple": True}, {"maximize": True}]
LAYOUTS: list[tuple[Placement, Placement]] = [
    (Shard(0), Shard(0)),
    (Shard(1), Shard(1)),
    (Replicate(), Replicate()),
    (Shard(0), Shard(1)),
    (Shard(1), Replicate()),
    (Replicate(), Partial()),
]
"""Of the parameter, of its gradient."""

SHAPES = [(5, 3), (1, 4), (6, 1)]
"""Uneven shards, and empty ones."""


def place(whole: torch.Tensor, mesh: DeviceMesh, placement: Placement | None) -> torch.Tensor:
    if placement is None:
        return whole.clone()
    if placement.is_partial():
        return DTensor.from_local(whole / mesh.size(), mesh, [placement])
    return distribute_tensor(whole, mesh, [placement])


def train(mesh, of_parameter, of_gradient, options):
    """Four steps; the whole parameters."""
    generator = torch.Generator().manual_seed(1)
    wholes = [torch.randn(shape, generator=generator) for shape in SHAPES]
    params = [torch.nn.Parameter(place(whole, mesh, of_parameter)) for whole in wholes]
    optimizer = QHADOPT(params, lr=0.1, **options)
    for _ in range(4):
        for p, shape in zip(params, SHAPES, strict=True):
            p.grad = place(torch.randn(shape, generator=generator), mesh, of_gradient)
        optimizer.step()
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in params]


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for options, form in itertools.product(OPTIONS, FORMS):
        expected = train(mesh, None, None, options | form)
        for layout in LAYOUTS:
            got = train(mesh, *layout, options | form)
            message = f"{layout}, {options | form}"
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, msg=message)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
