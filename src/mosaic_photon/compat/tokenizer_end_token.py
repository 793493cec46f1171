"""TorchTitan's tokenizer misses some bos and eos tokens, by whose ids its models keep documents apart.

Those are: an eos token that is the bos token too (GPT-2's kind), and tokens that only special_tokens_map.json names.
Upstream: pytorch/torchtitan#3279, fixed after 0.2.2. Delete the first reason with a release that has it; the second is
what transformers reads.
"""

from collections.abc import Mapping
from typing import Any

from mosaic_photon.tokenizers import special_id

NEEDED = "torchtitan"


def complete(tokenizer: Any, folder: str, dataset: Mapping[str, Any]) -> Any:
    """TorchTitan's tokenizer of the folder, with the ids of the bos and eos tokens that it has missed.

    Args:
        dataset: the data config's, whose `eos_token_id` wins over the tokenizer's.
    """
    for role in ("bos", "eos"):
        if getattr(tokenizer, f"{role}_id") is None:
            setattr(tokenizer, f"{role}_id", special_id(folder, role, tokenizer))
    between = dataset.get("eos_token_id")
    tokenizer.eos_id = tokenizer.eos_id if between is None else between
    return tokenizer
