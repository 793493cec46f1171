"""The same initial weights from the same seed in every layout, drawn where they are needed.

DTensor draws each shard's random numbers by itself: on a CPU every shard gets the same ones, on GPUs they depend on the
layout, and TorchTitan seeds pipeline stages differently. Here a number depends on seed, parameter name and place in the
whole parameter alone, so each rank draws those of its shards, a block of rows at a time.
`torch.nn.init.trunc_normal_` draws anew what falls outside since torch 2.13, as many times as it takes; ours takes the
quantile of a uniform number, as torch's did before. TorchTitan's gpt_oss never sets its routers' gate bias, which after
`to_empty` holds whatever the memory held, NaN too: parameters are zeroed first.
Upstream: pytorch/pytorch#168058, pytorch/torchtitan#3106, pytorch/torchtitan#2450. Delete when DTensor's initialisation
equals the unsharded one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from mosaic_photon.compat.counter_random import Stream, normal_cdf, normal_quantile
from mosaic_photon.names import clean_name

NEEDED = "torch"

BLOCK = 1 << 17
"""Numbers drawn at once, unless a single row has more."""


class ParameterPart(Tensor):
    """Stands for a whole parameter, or a slice of one, while a model is initialised; only this rank's part exists.

    It takes random fillings, in-place operations with numbers, and slices. Its shape is that of the whole.
    """

    local: Tensor
    """This rank's part, which operations change."""
    held: list[Tensor]
    """Of each dimension, where in the whole the part's indices lie: int64, ascending."""
    strides: list[int]
    """Of each dimension, how far apart in the parameter its neighbours are."""
    first: int
    """The place in the parameter of the whole's first element."""
    streams: Iterator[Stream]
    """Of the parameter's random numbers: one for each time that it is filled."""
    _is_param = True
    """A module takes it for a parameter: some initialisations tie two."""

    @staticmethod
    def __new__(
        cls: type[ParameterPart],
        shape: Sequence[int],
        local: Tensor,
        held: list[Tensor],
        strides: list[int],
        first: int,
        streams: Iterator[Stream],
    ) -> ParameterPart:
        part = Tensor._make_wrapper_subclass(cls, shape, dtype=local.dtype, device=local.device)
        part.local, part.held, part.strides, part.first, part.streams = local, held, strides, first, streams
        return part

    @classmethod
    def of(cls, parameter: Tensor, streams: Iterator[Stream]) -> ParameterPart:
        """The whole of a parameter, be it sharded, plain, or a ParameterPart already."""
        if isinstance(parameter, ParameterPart):
            return cls(parameter.shape, parameter.local, parameter.held, parameter.strides, parameter.first, streams)
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()
        held = [_held(parameter, dim) for dim in range(parameter.ndim)]
        strides = [parameter.shape[dim + 1 :].numel() for dim in range(parameter.ndim)]
        return cls(parameter.shape, local, held, strides, 0, streams)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        part, rest, kwargs = args[0], args[1:], kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_to_copy" and kwargs.get("dtype") is torch.float32:
            return part  # TorchTitan fills a copy of full precision; here only what is written is rounded
        if name == "copy_" and isinstance(rest[0], ParameterPart) and rest[0].local is part.local:
            return part
        numbers = all(isinstance(value, int | float | None) for value in (*rest, *kwargs.values()))
        if isinstance(part, ParameterPart) and numbers:
            if name in VIEWS:
                return VIEWS[name](part, *rest, **kwargs)
            if name in FILLS:
                kwargs.pop("generator", None)
                part.fill(FILLS[name](*rest, **kwargs))
                return part
            if name.endswith("_") and torch.Tag.nondeterministic_seeded not in func.tags:
                func(part.local, *rest, **kwargs)
                return part
        raise NotImplementedError(
            f"{func} while parameters are initialised: no rank holds a whole parameter, so only normal, truncated"
            " normal and uniform fillings, in-place operations with numbers, and slices are possible"
        )

    @torch.no_grad()
    def fill(self, value: Callable[[Tensor], Tensor]) -> None:
        """With `value` of uniform numbers, a block of rows at a time."""
        stream = next(self.streams)
        local, held, strides = self.local, self.held, self.strides
        if not local.ndim:
            local, held, strides = local.view(1), [torch.zeros(1, dtype=torch.int64, device=local.device)], [1]
        rows = max(1, BLOCK // max(1, local.shape[1:].numel()))
        for begin in range(0, len(local) if local.numel() else 0, rows):
            places = self.first + held[0][begin : begin + rows] * strides[0]
            for more, stride in zip(held[1:], strides[1:], strict=True):
                places = places.unsqueeze(-1) + more * stride
            local[begin : begin + rows] = value(stream.uniform(places))

    def narrowed(self, dim: int, begin: int, end: int) -> ParameterPart:
        """The slice of a dimension."""
        held = self.held[dim]
        inside = torch.nonzero((held >= begin) & (held < end)).flatten().tolist()
        first, last = (inside[0], inside[-1] + 1) if inside else (0, 0)
        if last - first != len(inside):
            raise NotImplementedError("a slice of a parameter whose shard is not contiguous")
        shape = [*self.shape[:dim], end - begin, *self.shape[dim + 1 :]]
        local = self.local.narrow(dim, first, last - first)
        others = [*self.held[:dim], held[first:last] - begin, *self.held[dim + 1 :]]
        return ParameterPart(shape, local, others, self.strides, self.first + begin * self.strides[dim], self.streams)


def _slice(
    part: ParameterPart, dim: int = 0, begin: int | None = None, end: int | None = None, step: int = 1
) -> ParameterPart:
    begin, end, step = slice(begin, end, step).indices(part.shape[dim])
    if step != 1:
        raise NotImplementedError("a slice with steps of a parameter that is initialised")
    return part.narrowed(dim, begin, max(begin, end))


def _held(parameter: Tensor, dim: int) -> Tensor:
    """Where in the whole this rank's indices of a dimension lie."""
    whole = torch.arange(parameter.shape[dim], device=parameter.device)
    if not isinstance(parameter, DTensor):
        return whole
    placements = [_along(placement, dim) for placement in parameter.placements]
    # src_data_rank=None: every rank holds the same numbers, nothing needs to be sent.
    return distribute_tensor(whole, parameter.device_mesh, placements, src_data_rank=None).to_local()


def _along(placement: Any, dim: int) -> Any:
    """How a vector that goes along this dimension is placed."""
    if getattr(placement, "dim", None) != dim:
        return Replicate()
    factor = getattr(placement, "split_factor", None)  # of FSDP's shards of tensor-parallel ones
    return type(placement)(0) if factor is None else type(placement)(0, split_factor=factor)


def _select(part: ParameterPart, dim: int, index: int) -> ParameterPart:
    """One index of a dimension. Where it is another rank's, what is done to it is done to nothing."""
    dim, index = dim % part.ndim, index % part.shape[dim]
    row = part.narrowed(dim, index, index + 1)
    shape, held, strides = ([*a[:dim], *a[dim + 1 :]] for a in (row.shape, row.held, row.strides))
    is_here = len(row.held[dim]) > 0
    local = row.local.select(dim, 0) if is_here else row.local.new_empty([len(indices) for indices in held])
    return ParameterPart(shape, local, held, strides, row.first, row.streams)


def _normal(mean: float = 0.0, std: float = 1.0) -> Callable[[Tensor], Tensor]:
    return lambda uniform: normal_quantile(uniform).mul_(std).add_(mean)


def _uniform(low: float = 0.0, high: float = 1.0) -> Callable[[Tensor], Tensor]:
    return lambda uniform: uniform.mul_(high - low).add_(low)


def _truncated_normal(mean: float, std: float, low: float, high: float) -> Callable[[Tensor], Tensor]:
    begin, end = normal_cdf((low - mean) / std), normal_cdf((high - mean) / std)

    def value(uniform: Tensor) -> Tensor:
        inside = uniform.mul_(end - begin).add_(begin).clamp_(2.0**-53, 1 - 2.0**-53)
        return normal_quantile(inside).mul_(std).add_(mean).clamp_(low, high)

    return value


VIEWS: dict[str, Callable[..., ParameterPart]] = {
    "alias": lambda part: ParameterPart.of(part, part.streams),  # torch takes no tensor for a view of itself
    "detach": lambda part: part,
    "select": _select,
    "slice": _slice,
}
FILLS = {"normal_": _normal, "uniform_": _uniform}


@contextmanager
def initialised_by_parts(model: nn.Module, seed: int) -> Iterator[None]:
    """Within it, the model's parameters are ParameterParts, whose random numbers depend on seed and name alone."""
    parts = {p: ParameterPart.of(p, _streams(seed, clean_name(name))) for name, p in model.named_parameters()}
    parameters = {part: parameter for parameter, part in parts.items()}
    upstream = nn.init._no_grad_trunc_normal_  # a model may have bound the public function before
    try:
        _exchange(model, parts)
        nn.init._no_grad_trunc_normal_ = _by_quantile(upstream)
        yield
    finally:
        nn.init._no_grad_trunc_normal_ = upstream
        _exchange(model, parameters)


def _streams(seed: int, name: str) -> Iterator[Stream]:
    return (Stream.of(seed, name, fill) for fill in itertools.count(1))


def _exchange(model: nn.Module, others: Mapping[Any, Any]) -> None:
    """Put others in the parameters' places, wherever they are now: an initialisation may tie two."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter in others:
                module._parameters[name] = others[parameter]


def _by_quantile(upstream: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def trunc_normal_(tensor: Tensor, mean: float, std: float, a: float, b: float, generator: Any = None) -> Tensor:
        if not isinstance(tensor, ParameterPart):
            return upstream(tensor, mean, std, a, b, generator)
        tensor.fill(_truncated_normal(mean, std, a, b))
        return tensor

    return trunc_normal_


def seed_init_by_name(model: Any, seed: int) -> None:
    """Replace `model.init_weights` by itself within `initialised_by_parts`, from zeros on."""
    init_weights = model.init_weights

    def seeded_init_weights(*args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        with initialised_by_parts(model, seed):
            init_weights(*args, **kwargs)

    model.init_weights = seeded_init_weights


def job_seed(seed: int | None) -> int:
    """The job's seed, or, where none is set, one that rank 0 draws for all ranks."""
    if seed is not None:
        return seed
    drawn = [int(torch.randint(2**31, (1,)))]
    dist.broadcast_object_list(drawn, src=0)
    return drawn[0]
