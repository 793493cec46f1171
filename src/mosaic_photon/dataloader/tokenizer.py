"""What a data config needs to know of a tokenizer, without importing transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def pad_token_id(assets: str | Path, tokenizer: Any) -> int | None:
    """The pad token's id that transformers would find in the tokenizer folder, None if there is none.

    `tokenizer` is TorchTitan's; its `token_to_id` turns the token into an id.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = Path(assets) / name
        if path.exists():
            token = json.loads(path.read_text(encoding="utf-8")).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None:
                return tokenizer.token_to_id(token)
    return None
