"""Attention in place of flex attention on a CPU: torch's eager form, which has no backward, is the reference."""

from functools import partial

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mosaic_photon.compat.cpu_flex_attention import dense_attention


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_equals_flex_attention(kv_heads: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 32, 16)
    k, v = torch.randn(2, 2, kv_heads, 32, 16)
    mask = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < 7), None, None, 32, 32, device="cpu", BLOCK_SIZE=32)
    options = {"block_mask": mask, "scale": 0.3, "enable_gqa": kv_heads < 4, "return_lse": True}
    ours, reference = partial(dense_attention, **options), partial(flex_attention, **options)
    for one, other in zip(ours(q, k, v), reference(q, k, v), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
