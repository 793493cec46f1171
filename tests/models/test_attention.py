"""`sdpa` keeps the contract of llm-foundry's `torch` attention, option by option; flex attention the same."""

import pytest
import torch
from llmfoundry.models.layers.attention import gen_slopes, scaled_multihead_dot_product_attention

from mosaic_photon.models import MPTMuPModelArgs, TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup.attention import (
    CausalAttention,
    FlexBias,
    _block_mask,
    attention_bias,
    in_dtype,
    sdpa_attention,
)

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
@pytest.mark.parametrize(
    "options", [{}, {"sliding_window_size": 3}, {"attn_logit_softcapping": 0.5}], ids=["plain", "window", "softcap"]
)
def test_flex_equals_llm_foundrys_with_the_additive_bias(alibi, documents, padding, options):
    slopes = gen_slopes(H, return_1d=True) if alibi else None
    window = options.get("sliding_window_size", -1)
    where = (S, torch.device("cpu"), slopes, documents, padding)
    bias, flex = attention_bias(*where), attention_bias(*where, window=window, flex=True)
    if flex is None:
        flex = FlexBias(_block_mask(S, torch.device("cpu"), None), None)
    with torch.no_grad():
        reference = {"attn_bias": bias, "is_causal": bias is None, **options}
        expected = scaled_multihead_dot_product_attention(*inputs(), H, H, **reference)[0]
        additive = sdpa_attention(*inputs(), H, H, **reference)[0]
        flexed = sdpa_attention(*inputs(), H, H, attn_bias=flex, **options)[0]
    seen = torch.ones(B, S, dtype=torch.bool) if padding is None else padding  # padding's own output is not read
    torch.testing.assert_close(flexed[seen], expected[seen], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(additive[seen], expected[seen], atol=1e-5, rtol=1e-5)


def test_flex_and_ring_attention_drop_nothing_that_is_asked_for():
    mask = FlexBias(_block_mask(S, torch.device("cpu"), None), None)
    for options in ({"sliding_window_size": 3}, {"dropout_p": 0.1, "training": True}):
        with pytest.raises(AssertionError):
            sdpa_attention(*inputs(), H, H, attn_bias=mask, **options)
        with pytest.raises(AssertionError):
            CausalAttention()(*inputs(), H, H, is_causal=True, **options)


def test_ring_attentions_kernel_is_causal_attention_with_grouped_heads():
    arguments = (*inputs(2), H, 2)
    expected = scaled_multihead_dot_product_attention(*arguments, softmax_scale=0.3, is_causal=True)[0]
    ours = CausalAttention()(*arguments, softmax_scale=0.3, is_causal=True)[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_layers_share_one_additive_bias_for_their_backward_passes():
    size = {"d_model": 32, "n_heads": 2, "n_layers": 3, "vocab_size": 64, "max_seq_len": 48}
    model = TitanComposerMPTMuP(MPTMuPModelArgs(**size, attn_config={"alibi": True}))
    saved = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-2:] == (48, 48):
            saved.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.zeros(1, 48, dtype=torch.long))
    assert len(saved) == 1


def test_the_additive_bias_stays_finite_in_bfloat16():
    bias = in_dtype(attention_bias(S, torch.device("cpu"), gen_slopes(H, return_1d=True)), torch.bfloat16)
    assert bias.dtype == torch.bfloat16 and bias.isfinite().all()


def _both():
    return sdpa_attention, scaled_multihead_dot_product_attention
