"""A callback's state as text: JSON where that is exact, else torch's serialisation in base64."""

import base64
import io
import json
from typing import Any

import torch

from mosaic_photon.errors import ConfigError

TORCH = "torch:"


def encode_state(name: str, state: dict[str, Any]) -> Any:
    """JSON-ready form of a callback's `state_dict()`.

    Raises:
        ConfigError: it holds what torch does not load back without running code.
    """
    try:
        if json.loads(json.dumps(state)) == state:
            return state
    except TypeError:
        pass
    buffer = io.BytesIO()
    torch.save(state, buffer)
    text = TORCH + base64.b64encode(buffer.getvalue()).decode()
    try:
        decode_state(text)
    except Exception as error:  # unpickling raises many kinds
        raise ConfigError(
            f"callbacks.{name}: its state cannot be checkpointed; it must be made of numbers, strings, lists, dicts and"
            f" tensors: {error}"
        ) from error
    return text


def decode_state(state: Any) -> dict[str, Any]:
    """The state that `encode_state` was given; empty for None."""
    if isinstance(state, str):
        buffer = io.BytesIO(base64.b64decode(state.removeprefix(TORCH)))
        return torch.load(buffer, weights_only=True, map_location="cpu")
    return state or {}
