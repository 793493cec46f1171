"""`sdpa`: torch's fused attention as an llm-foundry attention implementation, with the contract of its `torch` one.

Shapes: B batch, S_q queries, S_k keys, H query heads, K key/value heads, D head size.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class FlexBias:
    """What flex attention needs in place of an additive bias."""

    block_mask: Any
    """torch.nn.attention.flex_attention.BlockMask: causality, documents and the window."""
    alibi_slopes_H: Tensor | None
    window: int = -1
    """The sliding window's size in the block mask, -1 for none."""


def sdpa_attention(  # noqa: PLR0913 the signature is llm-foundry's
    query: Tensor,
    key: Tensor,
    value: Tensor,
    n_heads: int,
    kv_n_heads: int,
    past_key_value: tuple[Tensor, Tensor] | None = None,
    softmax_scale: float | None = None,
    attn_bias: Tensor | FlexBias | None = None,
    key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    training: bool = False,
    needs_weights: bool = False,
    attn_logit_softcapping: float | None = None,
    sliding_window_size: int = -1,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
    """Attention over [B, S, heads * D] inputs without materialising [S, S] scores.

    Same arguments, cache layout (keys [B, K, D, S], values [B, K, S, D]) and result as llm-foundry's
    `scaled_multihead_dot_product_attention`, to which the two cases that no fused kernel covers are handed: attention
    weights wanted, and capped logits. It adds a bias in its own dtype, the fused kernels take one in the query's.
    """
    capped = attn_logit_softcapping is not None and not isinstance(attn_bias, FlexBias)
    if needs_weights or capped:
        return _materialised(
            query, key, value, n_heads, kv_n_heads, past_key_value, softmax_scale, attn_bias, key_padding_mask,
            is_causal, dropout_p, training, needs_weights, attn_logit_softcapping, sliding_window_size,
        )  # fmt: skip
    q_BHSD = _split_heads(query, n_heads)
    k_BKSD, v_BKSD = _split_heads(key, kv_n_heads), _split_heads(value, kv_n_heads)
    if past_key_value is not None:
        if len(past_key_value) != 0:
            k_BKSD = torch.cat([past_key_value[0].transpose(2, 3), k_BKSD], dim=2)
            v_BKSD = torch.cat([past_key_value[1], v_BKSD], dim=2)
        past_key_value = (k_BKSD.transpose(2, 3), v_BKSD)
    if isinstance(attn_bias, FlexBias):
        assert attn_bias.window == sliding_window_size and key_padding_mask is None and not (training and dropout_p)
        out_BHSD = _flex(q_BHSD, k_BKSD, v_BKSD, attn_bias, softmax_scale, attn_logit_softcapping)
    else:
        n_q, n_k = q_BHSD.size(2), k_BKSD.size(2)
        plain = attn_bias is None and key_padding_mask is None and sliding_window_size == -1
        kernel_causal = plain and is_causal and n_q == n_k
        mask = None
        if not plain or (is_causal and 1 < n_q < n_k):
            mask = _mask(q_BHSD, n_k, attn_bias, key_padding_mask, is_causal, sliding_window_size)
        if q_BHSD.device.type == "cpu" and kv_n_heads < n_heads:  # torch's CPU kernel would fall back to [S, S] scores
            k_BKSD, v_BKSD = (t.repeat_interleave(n_heads // kv_n_heads, dim=1) for t in (k_BKSD, v_BKSD))
        out_BHSD = F.scaled_dot_product_attention(
            q_BHSD, k_BKSD, v_BKSD, attn_mask=mask, dropout_p=dropout_p if training else 0.0,
            is_causal=kernel_causal, scale=softmax_scale, enable_gqa=k_BKSD.size(1) < n_heads,
        )  # fmt: skip
    return out_BHSD.transpose(1, 2).flatten(2), None, past_key_value


class CausalKernel(nn.Module):
    """torch's causal attention on [B, H, S, D] as a module, which context parallelism hooks."""

    def forward(self, q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, scale: float | None) -> Tensor:
        return F.scaled_dot_product_attention(q_BHSD, k_BHSD, v_BHSD, is_causal=True, scale=scale)


class CausalAttention(nn.Module):
    """The plain causal case of `sdpa_attention`, as a module; MPTMuPModelArgs lets no other case come here."""

    PLAIN = dict.fromkeys(("past_key_value", "attn_bias", "key_padding_mask", "attn_logit_softcapping"))
    PLAIN |= {"is_causal": True, "needs_weights": False, "sliding_window_size": -1}

    def __init__(self) -> None:
        super().__init__()
        self.kernel = CausalKernel()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, n_heads: int, kv_n_heads: int, **options: Any
    ) -> tuple[Tensor, None, None]:
        assert all(options.get(name, plain) == plain for name, plain in self.PLAIN.items()) and options["is_causal"]
        assert not (options.get("training") and options.get("dropout_p"))
        q_BHSD = _split_heads(query, n_heads)
        group = n_heads // kv_n_heads  # repeated, as TorchTitan does: ring attention sends whole heads
        k_BHSD, v_BHSD = (_split_heads(x, kv_n_heads).repeat_interleave(group, dim=1) for x in (key, value))
        out_BHSD = self.kernel(q_BHSD, k_BHSD, v_BHSD, options.get("softmax_scale"))
        return out_BHSD.transpose(1, 2).flatten(2), None, None


def attention_bias(
    n_tokens: int,
    device: torch.device,
    alibi_slopes_H: Tensor | None = None,
    sequence_id_BS: Tensor | None = None,
    attention_mask_BS: Tensor | None = None,
    window: int = -1,
    flex: bool = False,
) -> Tensor | FlexBias | None:
    """What restricts attention beyond causality, causality included; None where plain causal attention is enough.

    Args:
        alibi_slopes_H: ALiBi's slope per head.
        sequence_id_BS: document number of each token; tokens attend within their document.
        attention_mask_BS: False at padding.
        window: how far back tokens attend, -1 for all the way. Read for flex attention only; the others are told in
            each call.
        flex: for flex attention; else an additive float32 tensor of [B or 1, H or 1, S, S].
    """
    if alibi_slopes_H is None and sequence_id_BS is None and attention_mask_BS is None and not (flex and window != -1):
        return None
    if flex:
        documents = _documents(sequence_id_BS, attention_mask_BS)
        return FlexBias(_block_mask(n_tokens, device, documents, window), alibi_slopes_H, window)
    position = torch.arange(n_tokens, device=device)
    allowed = (position[:, None] >= position[None, :])[None, None]
    if sequence_id_BS is not None:
        allowed = allowed & (sequence_id_BS[:, None, :, None] == sequence_id_BS[:, None, None, :])
    if attention_mask_BS is not None:
        allowed = allowed & attention_mask_BS.bool()[:, None, None, :]
    bias = torch.zeros((), device=device)
    if alibi_slopes_H is not None:  # softmax ignores what is constant along a row, so the key's position is enough
        bias = (position + 1 - n_tokens) * alibi_slopes_H.view(1, -1, 1, 1)
    return torch.where(allowed, bias, torch.finfo(torch.float32).min)


def _split_heads(x_BSM: Tensor, heads: int) -> Tensor:
    return x_BSM.unflatten(-1, (heads, -1)).transpose(1, 2)


def _mask(
    q_BHSD: Tensor, n_k: int, bias: Tensor | None, key_padding_mask: Tensor | None, is_causal: bool, window: int
) -> Tensor:
    """Additive mask of [B or 1, H or 1, S_q, S_k] in the query's dtype, from everything llm-foundry may pass."""
    n_q, device = q_BHSD.size(2), q_BHSD.device
    if bias is not None:
        bias = bias[:, :, max(0, bias.size(2) - n_q) :, max(0, bias.size(3) - n_k) :]
        if not is_causal and window == -1 and key_padding_mask is None:
            return in_dtype(bias, q_BHSD.dtype)
    back = torch.arange(n_k - n_q, n_k, device=device)[:, None] - torch.arange(n_k, device=device)[None, :]
    allowed = torch.ones(n_q, n_k, dtype=torch.bool, device=device)
    if is_causal:
        allowed &= back >= 0
    if window != -1:
        allowed &= back.abs() <= window
    allowed = allowed[None, None]
    if key_padding_mask is not None:
        allowed = allowed & key_padding_mask.bool()[:, None, None, -n_k:]
    bias = torch.zeros((), device=device) if bias is None else bias
    return in_dtype(torch.where(allowed, bias, torch.finfo(bias.dtype).min), q_BHSD.dtype)


def in_dtype(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive bias in the scores' dtype, finite, as exact as it can be there.

    A number as large as ALiBi's over thousands of tokens has a coarse grid in bfloat16. Softmax does not see what is
    constant along a row, so the largest of each row becomes 0: what counts for the query is then near 0, where the grid
    is fine. No copy where the bias has that dtype, so that layers which share it save one tensor for their backward
    passes.
    """
    if bias.dtype == dtype:
        return bias
    return (bias - bias.amax(-1, keepdim=True)).clamp(min=torch.finfo(dtype).min).to(dtype)


def _materialised(*args: Any) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
    from llmfoundry.models.layers.attention import scaled_multihead_dot_product_attention

    return scaled_multihead_dot_product_attention(*args)


def _documents(sequence_id_BS: Tensor | None, attention_mask_BS: Tensor | None) -> Tensor | None:
    """Padding is a document of its own, -1."""
    if attention_mask_BS is None:
        return sequence_id_BS
    documents = torch.zeros_like(attention_mask_BS, dtype=torch.long) if sequence_id_BS is None else sequence_id_BS
    return documents.masked_fill(~attention_mask_BS.bool(), -1)


def _block_mask(n_tokens: int, device: torch.device, documents_BS: Tensor | None, window: int = -1) -> Any:
    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        inside = q >= k
        if window != -1:
            inside = inside & (q - k <= window)
        return inside if documents_BS is None else inside & (documents_BS[b, q] == documents_BS[b, k])

    batch = None if documents_BS is None else documents_BS.size(0)
    return _flex_kernels(device.type)[1](allowed, batch, None, n_tokens, n_tokens, device=str(device))


def _flex(
    q_BHSD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias: FlexBias, scale: float | None, softcap: float | None
) -> Tensor:
    slopes_H = bias.alibi_slopes_H

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return score if slopes_H is None else score + slopes_H[h] * (k - q)

    plain = slopes_H is None and softcap is None
    return _flex_kernels(q_BHSD.device.type)[0](
        q_BHSD, k_BKSD, v_BKSD, score_mod=None if plain else score_mod, block_mask=bias.block_mask,
        scale=scale, enable_gqa=k_BKSD.size(1) < q_BHSD.size(1),
    )  # fmt: skip


@cache
def _flex_kernels(device_type: str) -> tuple[Any, Any]:
    """flex_attention and create_block_mask.

    Compiled on CUDA, where the second would else build a [B, S, S] mask; elsewhere the reference implementation, which
    is slow and good for checks.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if device_type != "cuda":
        return flex_attention, create_block_mask
    return torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask)
