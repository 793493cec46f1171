"""Where documents begin in concatenated text, for models that keep attention within them. Plain torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mosaic_photon.errors import ConfigError


@dataclass(frozen=True)
class Separator:
    """The token between documents: it ends the one before (eos), or begins the next (bos)."""

    token_id: int
    begins: bool

    def sequence_ids(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """The document of each token, counted from 0 in each row, as llm-foundry's collator does: [B, S] -> [B, S]."""
        is_separator_BS = tokens_BS == self.token_id
        documents_BS = is_separator_BS.cumsum(dim=1)
        return documents_BS if self.begins else documents_BS - is_separator_BS.long()


def separator_of(model_args: Any, dataset: Mapping[str, Any]) -> Separator | None:
    """What parts the documents, None for a model that does not ask.

    Args:
        model_args: the model's; llm-foundry's `attn_config.attn_uses_sequence_id` asks.
        dataset: the data config's dataset, whose `eos_token_id` or `bos_token_id` answers.

    Raises:
        ConfigError: the model asks and the data config has no answer.
    """
    if not (getattr(model_args, "attn_config", None) or {}).get("attn_uses_sequence_id"):
        return None
    for name in ("eos_token_id", "bos_token_id"):
        if dataset.get(name) is not None:
            return Separator(int(dataset[name]), begins=name == "bos_token_id")
    raise ConfigError(
        "attn_config.attn_uses_sequence_id = true keeps documents apart, but the data config does not say which token"
        " is between them; set eos_token_id or bos_token_id in its dataset."
    )
