"""Numbers about whole parameters from each rank's shards: two reductions and one transfer per report."""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def local_shard(tensor: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """This rank's shard of `tensor`, laid out as `like` where it lies in another way. To be called without gradients.

    Under tensor parallelism a gradient may be whole where its parameter is cut, or a sum that is still to be made.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    if isinstance(like, DTensor) and tensor.placements != like.placements:
        tensor = tensor.redistribute(placements=like.placements)
    return tensor.to_local()


def shard_counts(model: torch.nn.Module) -> dict[torch.nn.Parameter, int]:
    """For each parameter, the number of different shards it is cut into over all ranks (1: whole on each rank)."""
    counts = {parameter: _dtensor_shards(parameter) for parameter in model.parameters()}
    for module in model.modules():  # outer before inner: the innermost FSDP1 unit decides
        if isinstance(module, FullyShardedDataParallel):
            whole = module.sharding_strategy == ShardingStrategy.NO_SHARD
            shards = 1 if whole else dist.get_world_size(module.process_group)
            counts.update(dict.fromkeys(module.parameters(), shards))
    return counts


def _dtensor_shards(tensor: torch.Tensor) -> int:
    if not isinstance(tensor, DTensor):
        return 1
    cut = (not placement.is_replicate() for placement in tensor.placements)
    return math.prod(size for size, is_cut in zip(tensor.device_mesh.shape, cut, strict=True) if is_cut)


def squared_norms(groups: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Squares of the L2 norms of n tensors in each group, in one fused call: group -> [n], float64, on their device."""
    tensors = [tensor for group in groups.values() for tensor in group]
    dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors}, torch.float32)
    squares = torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype)).double().square()
    return dict(zip(groups, squares.view(len(groups), -1), strict=True))


def extremes(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest elements and negated smallest of n tensors: [n] and [n], float64; -inf for an empty tensor."""
    nothing = torch.full((), -math.inf, dtype=torch.float32, device=tensors[0].device)
    pairs = [torch.aminmax(tensor) if tensor.numel() else (-nothing, nothing) for tensor in tensors]
    smallest, largest = (torch.stack(side).double() for side in zip(*pairs, strict=True))
    return largest, -smallest


@dataclass
class LocalNumbers:
    """What one rank knows about its n parameters or shards, in the order of their names."""

    sums: dict[str, torch.Tensor]
    """Quantity -> [n], float64: adds up over a parameter's shards."""

    means: dict[str, torch.Tensor]
    """Quantity -> [n], float64: averaged over the ranks that hold the parameter."""

    maxima: dict[str, torch.Tensor]
    """Quantity -> [n], float64: the largest over a parameter's shards."""


class Reducer:
    """Combines per-parameter numbers over all ranks. Who holds what is agreed on once, on construction.

    A shard that several ranks hold (HSDP, DDP, TP's replicated norms) is not counted twice, and a parameter that a rank
    does not hold (PP) is missing there.

    Args:
        shards: this rank's parameters by name, with the number of different shards each is cut into.
        quantities: names of this rank's sums, means and maxima; the union over ranks is reduced.
    """

    def __init__(self, shards: Mapping[str, int], quantities: LocalNumbers) -> None:
        kinds = [list(quantities.sums), list(quantities.means), list(quantities.maxima)]
        ranks = gathered((dict(shards), kinds))
        holders = Counter(name for held, _ in ranks for name in held)
        self.names = sorted(holders, key=_natural)
        """Every parameter of the model, in the order of its name; the same on all ranks."""
        self._sums, self._means, self._maxima = (
            sorted({quantity for _, kinds in ranks for quantity in kinds[kind]}) for kind in range(3)
        )
        position = {name: index for index, name in enumerate(self.names)}
        self._index = torch.tensor([position[name] for name in shards], dtype=torch.long)
        once = torch.tensor([1 / holders[name] for name in shards], dtype=torch.float64)
        cut = torch.tensor(list(shards.values()), dtype=torch.float64)
        self._weights = torch.stack([cut * once] * len(self._sums) + [once] * len(self._means))

    def reduce(self, numbers: LocalNumbers) -> dict[str, list[float]]:
        """Quantity -> its value for each of `names`. Collective; waits for the device once."""
        given = numbers.sums | numbers.means | numbers.maxima
        device = next(iter(given.values())).device
        self._index, self._weights = self._index.to(device), self._weights.to(device)
        added = self._rows([*self._sums, *self._means], given, 0.0, device)
        if len(self._index):
            added[:, self._index] *= self._weights
        largest = self._rows(self._maxima, given, -math.inf, device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(added)
            if self._maxima:
                dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        values = torch.cat([added, largest]).tolist()
        return dict(zip([*self._sums, *self._means, *self._maxima], values, strict=True))

    def _rows(
        self, quantities: list[str], given: Mapping[str, torch.Tensor], missing: float, device: torch.device
    ) -> torch.Tensor:
        """[quantities, names], float64: this rank's values at its names' columns, `missing` elsewhere."""
        rows = torch.full((len(quantities), len(self.names)), missing, dtype=torch.float64, device=device)
        mine = [row for row, quantity in enumerate(quantities) if quantity in given]
        if mine and len(self._index):
            values = torch.stack([given[quantities[row]] for row in mine])
            rows[torch.tensor(mine, device=device).unsqueeze(1), self._index] = values
        return rows


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key under which layer 10 comes after layer 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def gathered(mine: T) -> list[T]:
    """Every rank's object, in their order. Collective."""
    if not dist.is_initialized():
        return [mine]
    ranks = [mine] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    return ranks
