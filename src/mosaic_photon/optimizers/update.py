"""One step of ADOPT with quasi-hyperbolic momentum, in three forms with the same result.

ADOPT: Taniguchi et al. 2024, algorithm 2, as in the package torch-adopt. The quasi-hyperbolic step: Ma & Yarats 2018.

Every function takes plain, real tensors: p the parameter, g its gradient, m the first moment, v the second, all of
one shape and device, p and g of one dtype, m and v of `compute_dtype` of it, in which all is computed, so that p is
rounded once. It updates p, m and v in place:

    g_hat = clip(g / max(sqrt(v), eps), -clip, clip)
    m     = beta1 * m + (1 - beta1) * g_hat
    p     = (1 - decay) * p - lr * ((1 - v1) * g_hat + v1 * m)
    v     = beta2 * v + (1 - beta2) * g**2
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

CUDA_BLOCK = 1 << 24
"""Elements that the foreach form handles at a time on an accelerator: it needs two or three temporaries of it."""

CPU_BLOCK = 1 << 19
"""The same on a CPU: five arrays of it, 10 MiB in fp32, stay in the last-level cache from pass to pass, and each pass
is long beside the 10 microseconds that an operation costs."""

CPU_GRAIN = 1 << 15
"""Elements below which ATen gives a thread no work of its own."""

CPU_PART = 8
"""Parameters that the compiled form takes in one call on a CPU: a call costs 0.1 ms, a longer graph compiles longer."""


@dataclass(frozen=True)
class Hyper:
    """The step's numbers, the schedule already applied."""

    lr: float
    decay: float
    """Share of p that decoupled weight decay takes away in this step."""
    coupled: float
    """Weight decay added to the gradient."""
    beta1: float
    beta2: float
    v1: float
    eps: float
    clip: float | None
    maximize: bool


@dataclass
class Tensors:
    """Parameters of one device, dtype and step count, with gradients and state, index by index."""

    p: list[Tensor] = field(default_factory=list)
    g: list[Tensor] = field(default_factory=list)
    m: list[Tensor] = field(default_factory=list)
    v: list[Tensor] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        return zip(*self.columns, strict=True)

    @property
    def columns(self) -> list[list[Tensor]]:
        return [self.p, self.g, self.m, self.v]

    def append(self, row: tuple[Tensor, ...]) -> None:
        for column, tensor in zip(self.columns, row, strict=True):
            column.append(tensor)


def _gradient(p: Tensor, g: Tensor, h: Hyper) -> Tensor:
    g = g.to(compute_dtype(p))
    g = g.neg() if h.maximize else g
    return g.add(p, alpha=h.coupled) if h.coupled else g


def first_step(tensors: Tensors, h: Hyper) -> None:
    """Call 0 of ADOPT: v = g**2; p and m stay as they are."""
    for p, g, _, v in tensors:
        g = _gradient(p, g, h)
        v.addcmul_(g, g)


def for_loop(tensors: Tensors, h: Hyper) -> None:
    """The plain form: tensor by tensor."""
    for p, g, m, v in tensors:
        g = _gradient(p, g, h)
        g_hat = g / v.sqrt().clamp_(min=h.eps)
        if h.clip is not None:
            g_hat.clamp_(-h.clip, h.clip)
        m.lerp_(g_hat, 1 - h.beta1)
        p_ = p.to(m.dtype)
        if h.decay:
            p_.mul_(1 - h.decay)
        if h.v1 != 1:
            p_.add_(g_hat, alpha=-h.lr * (1 - h.v1))
        if h.v1 != 0:
            p_.add_(m, alpha=-h.lr * h.v1)
        p.copy_(p_)
        v.mul_(h.beta2).addcmul_(g, g, value=1 - h.beta2)


def foreach(tensors: Tensors, h: Hyper) -> None:
    """Many tensors an operation. Work goes in blocks: on a CPU their passes hit the cache, not the memory."""
    temporaries = 3 if h.coupled or h.maximize else 2  # the gradient that is used may be a third
    if tensors.p[0].dtype != compute_dtype(tensors.p[0]):
        temporaries += 2  # the parameter and its gradient, wider
    for block in _blocks(tensors, temporaries):
        _foreach_block(block, h)


def _foreach_block(t: Tensors, h: Hyper) -> None:
    params, grads = _wide(t.p), _wide(t.g)
    if h.maximize:
        grads = list(torch._foreach_neg(grads))
    if h.coupled:
        grads = list(torch._foreach_add(grads, params, alpha=h.coupled))
    denominators = torch._foreach_sqrt(t.v)
    torch._foreach_clamp_min_(denominators, h.eps)
    g_hats = torch._foreach_div(grads, denominators)
    del denominators
    if h.clip is not None:
        torch._foreach_clamp_min_(g_hats, -h.clip)
        torch._foreach_clamp_max_(g_hats, h.clip)
    torch._foreach_lerp_(t.m, g_hats, 1 - h.beta1)
    if h.decay:
        torch._foreach_mul_(params, 1 - h.decay)
    if h.v1 != 1:
        torch._foreach_add_(params, g_hats, alpha=-h.lr * (1 - h.v1))
    if h.v1 != 0:
        torch._foreach_add_(params, t.m, alpha=-h.lr * h.v1)
    if params is not t.p:
        torch._foreach_copy_(t.p, params)
    torch._foreach_mul_(t.v, h.beta2)
    torch._foreach_addcmul_(t.v, grads, grads, value=1 - h.beta2)


def _wide(tensors: list[Tensor]) -> list[Tensor]:
    """The same list where its dtype is one to compute in, else copies."""
    dtype = compute_dtype(tensors[0])
    if tensors[0].dtype == dtype:
        return tensors
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return copies


def _blocks(tensors: Tensors, temporaries: int) -> Iterator[Tensors]:
    """The same elements in lists of at most one block each; tensors above it are cut, where their memory allows."""
    total = sum(p.numel() for p in tensors.p)
    on_cpu = tensors.p[0].device.type == "cpu"
    limit = max(CPU_BLOCK, CPU_GRAIN * torch.get_num_threads()) if on_cpu else CUDA_BLOCK
    limit = min(limit, max(1, total // temporaries))  # so that they are never more than one of the whole size
    block, filled = Tensors(), 0
    for row in tensors:
        for piece in _cut(row, limit):
            if filled and filled + piece[0].numel() > limit:
                yield block
                block, filled = Tensors(), 0
            block.append(piece)
            filled += piece[0].numel()
    yield block


def _cut(row: tuple[Tensor, ...], limit: int) -> Iterator[tuple[Tensor, ...]]:
    """Equal pieces of at most `limit` elements: a small rest would cost as many operations as a large one."""
    pieces = math.ceil(row[0].numel() / limit)
    if pieces <= 1 or not all(tensor.is_contiguous() for tensor in row):
        return iter((row,))
    return zip(*(tensor.view(-1).split(math.ceil(tensor.numel() / pieces)) for tensor in row), strict=True)


def scalars_of(h: Hyper, like: Tensor) -> Tensor:
    """The numbers that `traced` takes, as one tensor on the parameter's device, each rounded once."""
    clip = math.inf if h.clip is None else h.clip
    numbers = (1 - h.decay, h.lr * (1 - h.v1), h.lr * h.v1, 1 - h.beta1, h.beta2, 1 - h.beta2, h.eps, clip, h.coupled)
    # A blocking copy would wait for all that the device has been given.
    return torch.tensor(numbers, dtype=compute_dtype(like)).to(like.device, non_blocking=True)


def capturable_scalars(h: Hyper, lr: Tensor, decay: Tensor, clip: Tensor, step: Tensor) -> Tensor:
    """As `scalars_of`, from tensors on the device and without a transfer; call 0 is arithmetic, not a branch."""
    first = step == 0
    lr, decay, clip = (torch.where(first, 0.0, number) for number in (lr, decay, clip))
    new_square = torch.where(first, torch.ones_like(lr), 1 - h.beta2)  # two floats would make a float32
    numbers = (1 - decay, lr * (1 - h.v1), lr * h.v1, 1 - h.beta1, h.beta2, new_square, h.eps, clip, h.coupled)
    return torch.stack([n if isinstance(n, Tensor) else lr.new_full((), n) for n in numbers])


def traced(tensors: list[list[Tensor]], scalars: Tensor, maximize: bool) -> None:
    """The step as a graph: every number that may change is a tensor, so it is compiled, or captured, once.

    tensors: p, g, m and v; scalars: shape [9], as `scalars_of` makes it.
    """
    keep, lr_grad, lr_moment, new, beta2, new_square, eps, clip, coupled = scalars.unbind()
    dtype = scalars.dtype
    for p, g, m, v in zip(*tensors, strict=True):
        p_, m_, v_ = p.to(dtype), m.to(dtype), v.to(dtype)
        g_ = (-g if maximize else g).to(dtype) + coupled * p_
        g_hat = torch.clamp(g_ / torch.maximum(v_.sqrt(), eps), -clip, clip)
        m_ = m_ + new * (g_hat - m_)
        p.copy_(keep * p_ - lr_grad * g_hat - lr_moment * m_)
        m.copy_(m_)
        v.copy_(beta2 * v_ + new_square * g_ * g_)


def fused(tensors: Tensors, scalars: Tensor, maximize: bool) -> None:
    """`traced` in one pass over memory and without temporaries: our kernel on a GPU, else compiled."""
    if tensors.p[0].device.type == "cuda":
        from mosaic_photon.optimizers import fused_kernel  # imports Triton

        dense, tensors = _contiguous(tensors)
        if dense.p:
            fused_kernel.step(dense.columns, scalars, maximize)
    for part in _parts(tensors):
        compiled(part.columns, scalars, maximize)


def compiled(tensors: list[list[Tensor]], scalars: Tensor, maximize: bool) -> None:
    """`traced`, compiled: a kernel a tensor, which a CUDA graph may capture."""
    # A compilation each for a device, a dtype, a direction and one-element tensors: rightly more than torch's 8.
    with torch._dynamo.config.patch(recompile_limit=64):
        _compiled(scalars.device.type == "cpu")(tensors, scalars, maximize)


def _contiguous(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Those whose elements lie in the same order in all four places, and the others."""
    if all(tensor.is_contiguous() for column in tensors.columns for tensor in column):
        return tensors, Tensors()  # as in most steps, where the host need not sort them
    dense, others = Tensors(), Tensors()
    for row in tensors:
        (dense if all(tensor.is_contiguous() for tensor in row) else others).append(row)
    return dense, others


def _parts(tensors: Tensors) -> Iterator[Tensors]:
    """Lists of `CPU_PART` tensors, then of one, flat and so of a dynamic length: two graphs serve every model."""
    part, rows = Tensors(), list(tensors)
    whole = len(rows) - len(rows) % CPU_PART
    for index, row in enumerate(rows):
        flat = all(tensor.is_contiguous() for tensor in row)
        part.append(tuple(tensor.view(-1) for tensor in row) if flat else row)
        if len(part.p) == CPU_PART or index >= whole:
            yield part
            part = Tensors()


@cache
def _compiled(dynamic: bool) -> Any:
    return torch.compile(traced, dynamic=dynamic, fullgraph=True)


def compute_dtype(like: Tensor) -> torch.dtype:
    """What is computed in, and the dtype of the moments, for a real parameter: float32 where it is narrower.

    In bfloat16 0.9999 is 1: a second moment would never forget.
    """
    return torch.float64 if like.dtype == torch.float64 else torch.float32
