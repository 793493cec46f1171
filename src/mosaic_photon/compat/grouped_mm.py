"""Experts in one grouped matrix multiplication need CUDA's compute capability 9.0; else they run one after another.

TorchTitan 0.2.2 switches to the loop by itself in llama4, deepseek_v3 and gpt_oss; in qwen3 it does not, and the first
step ends in Triton (`moe_args.use_grouped_mm`). 0.3 has no loop, and on other devices torch multiplies in bfloat16:
`titan/v03/experts.py` has one. No upstream issue. Delete when all its models switch.
"""

import dataclasses
import logging
from typing import Any

NEEDED = "torchtitan"


def without_grouped_mm(model_args: Any) -> Any:
    """The model args with the loop over experts where this machine has no grouped multiplication."""
    from torchtitan.tools.utils import has_cuda_capability

    moe_args = getattr(model_args, "moe_args", None)
    if moe_args is None or not moe_args.use_grouped_mm or has_cuda_capability(9, 0):
        return model_args
    if getattr(model_args, "moe_enabled", True):
        logging.getLogger(__name__).info("This device has no grouped matrix multiplication: experts run in a loop.")
    return dataclasses.replace(model_args, moe_args=dataclasses.replace(moe_args, use_grouped_mm=False))
