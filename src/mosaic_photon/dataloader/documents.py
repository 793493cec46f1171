"""Where documents begin in concatenated text, for models that keep attention within them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.documents import uses_sequence_id


def document_counter(model_args: Any, dataset: Mapping[str, Any]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """llm-foundry's function from tokens [B, S] to the document of each, [B, S]; None for a model that does not ask.

    Args:
        model_args: the model's; llm-foundry's `attn_config.attn_uses_sequence_id` asks.
        dataset: the data config's dataset, whose `eos_token_id` or `bos_token_id` says what is between documents.

    Raises:
        ConfigError: the model asks and the data config has no answer.
    """
    if not uses_sequence_id(model_args):
        return None
    from llmfoundry.data.text_data import ConcatenatedSequenceCollatorWrapper

    separators = {name: dataset.get(name) for name in ("eos_token_id", "bos_token_id")}
    try:
        collator = ConcatenatedSequenceCollatorWrapper(dict, **separators)  # it never has to collate
    except ValueError as error:
        raise ConfigError(
            "attn_config.attn_uses_sequence_id = true keeps documents apart, but the data config does not say which"
            f" token is between them; set eos_token_id or bos_token_id in its dataset. ({error})"
        ) from error
    return lambda tokens_BS: collator.get_sequence_id_from_batch({"input_ids": tokens_BS})
