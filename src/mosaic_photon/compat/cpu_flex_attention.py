"""TorchTitan's flex attention (gpt_oss, and the flex flavors of other models) has no backward pass on a CPU.

There its masks are built on the CPU and attention is computed with whole score matrices: right, and slow.
Upstream: pytorch/pytorch#148752, pytorch/pytorch#169224. Delete when flex attention trains on a CPU and TorchTitan
builds masks on the model's device.
"""

import importlib.util
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

NEEDED = "torch"


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_mask: BlockMask,
    scale: float | None,
    enable_gqa: bool,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """What `flex_attention` returns for these arguments.

    Args:
        q: [B, H, S, D].
        k, v: [B, H, S, D], or with `enable_gqa` [B, K, S, D] where K divides H.
        block_mask: what may be seen; only its mask_mod is used.
        scale: of the scores; None is 1/sqrt(D).
        enable_gqa: whether k and v have fewer heads.
        return_lse: also return the log of each row's sum of exponentials, [B, H, S].
    """
    if enable_gqa:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(-2, -1)).float() * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = create_mask(block_mask.mask_mod, q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.device)
    scores = scores.masked_fill(~seen, float("-inf"))
    output = scores.softmax(-1).to(v.dtype) @ v
    return (output, torch.logsumexp(scores, -1)) if return_lse else output


def dense_attention_and_aux(
    q: Tensor, k: Tensor, v: Tensor, *, score_mod: None, kernel_options: Any, return_aux: Any, **options: Any
) -> tuple[Tensor, Any]:
    """The same in the form in which TorchTitan 0.3 calls `flex_attention`; it changes no scores."""
    from torch.nn.attention.flex_attention import AuxOutput

    output, lse = dense_attention(q, k, v, return_lse=True, **options)
    return output, AuxOutput(lse=lse if return_aux.lse else None)


def apply() -> None:
    """Let TorchTitan's flex attention train on a CPU."""
    _replace()
    _replace_again_after_determinism()


@cache
def _replace_again_after_determinism() -> None:
    """A job with `debug.deterministic` has flex attention compiled anew, after all has been replaced."""
    from torchtitan.distributed import utils

    stock = utils.set_determinism

    @wraps(stock)
    def set_determinism(*args: Any, **kwargs: Any) -> None:
        stock(*args, **kwargs)
        _replace()

    utils.set_determinism = set_determinism


def _replace() -> None:
    if importlib.util.find_spec("torchtitan.models.attention") is None:  # since 0.3
        from torch.distributed.tensor.experimental._context_parallel import _attention as shared_out
        from torchtitan.models.common import attention

        shared_out._compiled_create_block_mask = create_block_mask  # type: ignore[assignment]  # compiling takes a minute
        attention._compiled_create_block_mask = create_block_mask
        attention.FlexAttention._compiled_flex_attn = dense_attention_and_aux
        return
    from torchtitan.models import attention

    attention._compiled_create_block_mask = partial(create_block_mask, device="cpu")
    attention.FlexAttentionWrapper._compiled_flex_attn = dense_attention
