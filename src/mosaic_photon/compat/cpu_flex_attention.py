"""TorchTitan's flex attention (gpt_oss, the flex flavors) is compiled for and builds its masks on "cuda".

On a CPU the compiled form has no backward pass, so masks are built there and torch's own unfused form runs.
Upstream: pytorch/pytorch#148752, pytorch/pytorch#169224. Delete when compiled flex attention trains on a CPU and
TorchTitan passes the device.
"""

from functools import partial

from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torchtitan.models import attention


def apply() -> None:
    """Let TorchTitan's flex attention run on a CPU."""
    attention._compiled_create_block_mask = partial(create_block_mask, device="cpu")
    attention.FlexAttentionWrapper._compiled_flex_attn = flex_attention
