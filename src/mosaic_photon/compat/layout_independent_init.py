"""The same initial weights from the same seed in every layout.

DTensor draws each shard's random numbers by itself: on a CPU every shard gets the same ones, on GPUs they depend on the
layout, and TorchTitan seeds pipeline stages differently. Here each parameter is drawn whole from a generator seeded by
(seed, parameter name), and every rank keeps its shard.
Upstream: pytorch/pytorch#168058, pytorch/torchtitan#3106. Delete when DTensor's initialisation equals the
unsharded one.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.overrides import TorchFunctionMode

from mosaic_photon.names import clean_name

RANDOM_FILLS = {
    nn.init.normal_,  # these three ask for overrides themselves, before they call a tensor's method
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.bernoulli_,
    torch.Tensor.exponential_,
    torch.Tensor.log_normal_,
    torch.Tensor.random_,
}


class SeededByName(TorchFunctionMode):
    """Within it, a random in-place fill of one of `parameters` draws the whole tensor from its own generator."""

    def __init__(self, parameters: dict[str, torch.Tensor], seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.names = {id(tensor): clean_name(name) for name, tensor in parameters.items()}
        self.generators: dict[int, torch.Generator] = {}

    def generator(self, tensor: torch.Tensor) -> torch.Generator:
        """One generator a parameter, so that a second fill of the same parameter goes on where the first ended."""
        key = id(tensor)
        if key not in self.generators:
            digest = hashlib.sha256(f"{self.seed}/{self.names[key]}".encode()).digest()
            generator = torch.Generator(device=tensor.device)
            self.generators[key] = generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return self.generators[key]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        target: Any = args[0] if args else kwargs.get("tensor")
        if func not in RANDOM_FILLS or id(target) not in self.names or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        kwargs.pop("tensor", None)
        kwargs["generator"] = self.generator(target)
        if not isinstance(target, DTensor):
            return func(target, *args[1:], **kwargs)
        whole = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        func(whole, *args[1:], **kwargs)
        # src_data_rank=None: every rank holds the same whole tensor, nothing needs to be sent.
        target.copy_(distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None))
        return target


def seed_init_by_name(model: Any, seed: int) -> None:
    """Replace `model.init_weights` by itself run under `SeededByName`. Parameters exist when it is called, not now."""
    init_weights = model.init_weights

    def seeded_init_weights(*args: Any, **kwargs: Any) -> None:
        with SeededByName(dict(model.named_parameters()), seed):
            init_weights(*args, **kwargs)

    model.init_weights = seeded_init_weights


def job_seed(seed: int | None) -> int:
    """The job's seed, or, where none is set, one that rank 0 draws for all ranks."""
    if seed is not None:
        return seed
    drawn = torch.randint(2**31, (1,))
    if dist.get_world_size() > 1:
        holder = [drawn.item()]
        dist.broadcast_object_list(holder, src=0)
        return int(holder[0])
    return int(drawn)
