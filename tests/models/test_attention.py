"""`sdpa` keeps the contract of llm-foundry's `torch` attention, option by option; flex attention the same."""

import pytest
import torch
from llmfoundry.models.layers.attention import gen_slopes, scaled_multihead_dot_product_attention

from mosaic_photon.models.mpt_mup.attention import FlexBias, _block_mask, _documents, attention_bias, sdpa_attention

B, S, H, D = 2, 16, 4, 8
PADDING = torch.arange(S).expand(B, S) < torch.tensor([[10], [16]])
DOCUMENTS = (torch.arange(S) // 5).expand(B, S)


def inputs(kv_heads: int = H, queries: int = S) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(B, queries, H * D), *(torch.randn(B, queries, kv_heads * D) for _ in range(2))


@pytest.mark.parametrize(
    ("kv_heads", "options"),
    [
        (4, {"is_causal": True}),
        (4, {"is_causal": False}),
        (2, {"is_causal": True, "softmax_scale": 0.3}),
        (1, {"is_causal": True}),
        (4, {"is_causal": True, "key_padding_mask": PADDING}),
        (4, {"is_causal": True, "sliding_window_size": 3}),
        (4, {"is_causal": True, "attn_bias": torch.randn(1, H, 1, S + 4)}),
        (4, {"is_causal": True, "attn_logit_softcapping": 1.5}),
        (4, {"is_causal": True, "needs_weights": True}),
    ],
)
def test_equals_llm_foundrys(kv_heads, options):
    arguments = (*inputs(kv_heads), H, kv_heads)
    ours, theirs = (f(*arguments, **options) for f in (sdpa_attention, scaled_multihead_dot_product_attention))
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    assert (ours[1] is None) == (theirs[1] is None)


def test_cache_has_llm_foundrys_layout():
    empty: tuple = ()
    prompt = [f(*inputs(2), H, 2, past_key_value=empty, is_causal=True) for f in _both()]
    for ours, theirs in zip(prompt[0][2], prompt[1][2], strict=True):
        torch.testing.assert_close(ours, theirs)
    cache = prompt[1][2]
    token = [f(*inputs(2, queries=1), H, 2, past_key_value=cache, is_causal=True)[0] for f in _both()]
    torch.testing.assert_close(*token, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize(("documents", "padding"), [(None, None), (DOCUMENTS, None), (DOCUMENTS, PADDING)])
def test_flex_equals_the_additive_bias(alibi, documents, padding):
    slopes = gen_slopes(H, return_1d=True) if alibi else None
    bias = attention_bias(S, torch.device("cpu"), slopes, documents, padding)
    mask = _block_mask(S, torch.device("cpu"), _documents(documents, padding))
    with torch.no_grad():
        expected = sdpa_attention(*inputs(), H, H, attn_bias=bias, is_causal=bias is None)[0]
        flex = sdpa_attention(*inputs(), H, H, attn_bias=FlexBias(mask, slopes))[0]
    seen = torch.ones(B, S, dtype=torch.bool) if padding is None else padding  # padding's own output is not read
    torch.testing.assert_close(flex[seen], expected[seen], atol=1e-5, rtol=1e-5)


def _both():
    return sdpa_attention, scaled_multihead_dot_product_attention
