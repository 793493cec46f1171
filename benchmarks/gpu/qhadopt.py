"""QHADOPT's fused, foreach and capturable forms on the device against the tensor-by-tensor loop on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpu.device import relative
from gpu.rows import Options, Rows
from mosaic_photon.optimizers import QHADOPT

STEPS, TOLERANCE = 6, 1e-5
SHAPES = ((257, 64), (64,), (3, 5, 7), (1,))
FORMS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
    "capturable fused": {"capturable": True, "fused": True},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "": {"weight_decay": 0.0},
    ", decoupled decay": {"weight_decay": 0.1, "decouple": True},
    ", L2 penalty": {"weight_decay": 0.1},
}


def run(options: Options, rows: Rows) -> None:
    for setting, more in options.pick(SETTINGS, {"": SETTINGS[""]}).items():
        right = trained("cpu", {"foreach": False} | more)
        for form, flags in FORMS.items():
            if options.tiny and form == "capturable fused":
                continue  # one compilation is enough to try
            try:
                error = relative(trained(options.device, flags | more), right)
                rows.check(f"{form}{setting}", error, TOLERANCE)
            except Exception as error:
                rows.failed(f"{form}{setting}", f"{type(error).__name__}: {error}")
    if options.device == "cuda":
        rows.check("captured in a CUDA graph", relative(captured(), trained("cpu", {"foreach": False})), TOLERANCE)


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) * 0.1 for shape in SHAPES]


def parameters(device: str) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1000)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in SHAPES]


def trained(device: str, flags: dict[str, Any]) -> list[Tensor]:
    """Parameters and moments after STEPS steps."""
    params = parameters(device)
    optimizer = QHADOPT(params, lr=0.01, **flags)
    for step in range(STEPS):
        for parameter, gradient in zip(params, gradients(step), strict=True):
            parameter.grad = gradient.to(device)
        optimizer.step()
    return [*params, *moments(optimizer, params)]


def captured() -> list[Tensor]:
    """The same, with every step but the first a replay of one graph."""
    params = parameters("cuda")
    optimizer = QHADOPT(params, lr=0.01, capturable=True)
    for parameter, gradient in zip(params, gradients(0), strict=True):
        parameter.grad = gradient.cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for step in range(1, STEPS):
        for parameter, gradient in zip(params, gradients(step), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(gradient)
        graph.replay()
    torch.cuda.synchronize()
    return [*params, *moments(optimizer, params)]


def moments(optimizer: QHADOPT, params: list[torch.nn.Parameter]) -> list[Tensor]:
    return [optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq") for parameter in params]
