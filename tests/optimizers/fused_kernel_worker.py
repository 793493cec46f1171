"""Runs the fused kernel on CPU tensors in Triton's interpreter, beside the traced form; prints the largest difference.

A process of its own: Triton reads TRITON_INTERPRET when it is imported.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

from contextlib import nullcontext
from typing import Any, cast

import torch

from mosaic_photon.optimizers import fused_kernel, update

SHAPES = ((257, 64), (64,), (3, 5, 7), (1,), (fused_kernel.CHUNK,), (2 * fused_kernel.CHUNK + 1,))


def tensors(dtype: torch.dtype, offset: int) -> update.Tensors:
    """p, g, m and v; `offset` elements beyond an aligned address."""
    generator = torch.Generator().manual_seed(0)
    made = update.Tensors()
    for shape in SHAPES:
        size = torch.Size(shape).numel()
        row = [torch.randn(size + offset, generator=generator).to(dtype)[offset:].view(shape) for _ in range(4)]
        wide = update.compute_dtype(row[0])
        m, v = (torch.zeros(size + offset, dtype=wide)[offset:].view(shape).copy_(values) for values in row[2:])
        made.append((row[0], row[1].mul_(0.1), m.mul_(0.1), v.abs_()))
    made.g[0][0, 0] = float("nan")  # must reach the parameter
    return made


def main() -> None:
    cast(Any, torch.cuda).device_of = lambda tensor: nullcontext()
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for maximize in (False, True):
            for offset in (0, 1):
                right, given = tensors(dtype, offset), tensors(dtype, offset)
                hyper = update.Hyper(0.1, 0.01, 0.02, 0.9, 0.99, 0.7, 1e-2, 1.3, maximize)
                scalars = update.scalars_of(hyper, right.p[0])
                update.traced([right.p, right.g, right.m, right.v], scalars, maximize)
                fused_kernel.step([given.p, given.g, given.m, given.v], scalars, maximize)
                for mine, theirs in zip(given.p + given.m + given.v, right.p + right.m + right.v, strict=True):
                    torch.testing.assert_close(mine, theirs, equal_nan=True)
                assert given.p[0].isnan().sum() == 1
                print(dtype, maximize, offset)


if __name__ == "__main__":
    main()
