"""bfloat16 costs nowhere more than in llm-foundry: the rows of `mpt_precision.py`, and what FSDP hands to a block."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import mpt_precision as precision
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.models.mpt_mup import model as mpt_model
from mosaic_photon.models.mpt_mup.parallelize import apply_fsdp
from mpt_precision import CASES, attention, measure, outcome, pair

ROUNDING = 1.25
"""Kernels that round in other places differ by this much; a part that computes in too narrow a dtype by ten times."""


@pytest.mark.parametrize("name", CASES)
def test_no_part_is_less_exact_than_llm_foundrys(name):
    for mode, (ours, theirs) in measure(CASES[name]).items():
        for found, bound in zip(astuple(ours), astuple(theirs), strict=True):
            assert found <= ROUNDING * bound, (mode, ours, theirs)


@pytest.mark.parametrize("flex", [False, True], ids=["bias", "flex"])
def test_fsdp_does_not_round_alibi_on_its_way_into_a_block(flex, monkeypatch):
    """Slopes of 12 heads are no powers of 2: rounded, they are others."""
    case = attention(1024, alibi=True, **{} if flex else precision.TORCH)
    case.changes.update(d_model=96, n_heads=12)
    bias = mpt_model.attention_bias
    monkeypatch.setattr(mpt_model, "attention_bias", lambda *args, **kwargs: bias(*args, **kwargs | {"flex": flex}))
    ours, theirs = pair(case.changes)
    exact, expected = (outcome(theirs, case, mode) for mode in ("float32", "weights"))
    received = []
    attn = ours.layers["0"].attn
    attn.register_forward_pre_hook(lambda _, args, kwargs: received.append(kwargs["attn_bias"]), with_kwargs=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        apply_fsdp(ours, init_device_mesh("cpu", (1,)), MosaicJobConfig(), pp_enabled=False)
        torch.manual_seed(1)
        tokens, _ = torch.randint(precision.VOCABULARY, (2, 1, case.tokens))
        with torch.no_grad():
            logits = ours(tokens)
    finally:
        dist.destroy_process_group()
    assert logits.dtype == torch.bfloat16
    assert (received[0].alibi_slopes_H if flex else received[0]).dtype == torch.float32
    found, bound = ((out.float() - exact.logits).abs().mean() for out in (logits, expected.logits))
    assert found <= ROUNDING * bound
