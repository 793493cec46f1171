"""Where documents end in concatenated text, and whether the job's model keeps attention within them."""

from collections.abc import Mapping
from typing import Any

from mosaic_photon.job.tables import MosaicJobConfig


def separators(job: MosaicJobConfig) -> dict[str, int]:
    """The token that the data config says is between documents, as `eos_token_id` or `bos_token_id`; empty for none."""
    dataset: Mapping[str, Any] = job.mosaic.dataloader.get("dataset", {})
    given = {name: dataset.get(name) for name in ("eos_token_id", "bos_token_id")}
    return {name: token for name, token in given.items() if token is not None}


def masks_by_end_token(model_args: Any) -> bool:
    """Whether TorchTitan's model keeps attention within documents, which it tells apart by the tokenizer's eos id."""
    by_document = getattr(model_args, "attn_mask_type", None) == "block_causal"
    return by_document and getattr(model_args, "attn_type", "sdpa") in ("flex", "varlen")


def uses_sequence_id(model_args: Any) -> bool:
    """Whether llm-foundry's model keeps attention within documents, of which each batch brings the numbers."""
    return bool((getattr(model_args, "attn_config", None) or {}).get("attn_uses_sequence_id"))


def in_words(job: MosaicJobConfig, model_args: Any) -> str | None:
    """What attention does at the ends of documents; None where nobody knows of any."""
    between = separators(job)
    if masks_by_end_token(model_args) and not job.mosaic.separate_documents:
        between.pop("bos_token_id", None)  # by itself it looks for the tokenizer's eos
    given = " ".join(f"{name} = {token}" for name, token in between.items())
    if masks_by_end_token(model_args) or uses_sequence_id(model_args):
        return f"attention stays within each ({given or 'by the end token of the tokenizer'})"
    if given:
        return f"attention crosses their ends ({given}); [mosaic] separate_documents = true keeps it within each"
    return None
