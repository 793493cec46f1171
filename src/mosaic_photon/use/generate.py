"""Text from a model, as transformers' `generate` makes it, with its key-value cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from mosaic_photon.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    new_tokens: int
    """At most; the end token ends a text before."""
    temperature: float
    """0: the likeliest token, always."""
    top_p: float
    seed: int
    """Each prompt begins with it."""

    def check(self) -> None:
        """Raises ConfigError: a value out of range."""
        if self.new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {self.new_tokens}, must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"--temperature is {self.temperature:g}, must be 0 (the likeliest token) or more, and finite"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p:g}, must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed is {self.seed}, must be from 0 to 2^63 - 1")


def positions(model: Any) -> int:
    """How many tokens, prompt and text together, the model was made for."""
    config = model.config
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    return int(longest or 2**63)


def encode(model: Any, tokenizer: Any, prompt: str) -> torch.Tensor:
    """The prompt's tokens as the tokenizer has them, int64 [1, S]; the begin token alone for an empty one.

    Raises:
        ConfigError: nothing to begin from, or more than the model's positions.
    """
    begins = (token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None)
    ids = tokenizer(prompt).input_ids or [*islice(begins, 1)]
    if not ids:
        raise ConfigError("the prompt is empty, and the tokenizer has no begin token (bos_token) to go on from.")
    if len(ids) >= positions(model):
        raise ConfigError(f"the prompt has {len(ids)} tokens, and the model has {positions(model)} positions.")
    return torch.tensor([ids], device=model.device)


def generate(model: Any, tokenizer: Any, prompt: torch.Tensor, sampling: Sampling, streamer: Any = None) -> list[int]:
    """Ids of the new tokens, the end token included where it ended the text.

    Args:
        model: of transformers.
        prompt: int64 [1, S].
        streamer: transformers'; is given each token as it comes.
    """
    torch.manual_seed(sampling.seed)
    end = tokenizer.eos_token_id
    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    length = prompt.shape[1]
    found = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=min(sampling.new_tokens, positions(model) - length),
        eos_token_id=end,
        pad_token_id=0 if end is None else end,  # fills up other texts of a batch, of which there are none
        streamer=streamer,
        **how,
    )
    new: list[int] = found[0, length:].tolist()
    return new
