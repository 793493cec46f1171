"""FSDP2 on gloo: "Cannot use ReduceOp.PREMUL_SUM with Gloo".

TorchTitan sets FSDP's gradient divide factor to 1, which FSDP2 carries out with a reduction gloo does not have.
Upstream: pytorch/pytorch#155915 (the switch used here), pytorch/torchtitan#2332 (the same on XPU). Delete when FSDP2
chooses a plain sum on gloo by itself.
"""

import torch
from torch.distributed.fsdp import FSDPModule

NEEDED = "torch"


def force_sum_reduction(model: torch.nn.Module) -> None:
    """Let every FSDP module of `model` reduce with a plain sum, gradients being divided before the backward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
