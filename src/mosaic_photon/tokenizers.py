"""What a tokenizer folder says of its special tokens, as transformers finds it, without importing transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
BYTE_LEVEL = Path(__file__).parent / "assets" / "byte_tokenizer"
"""A tokenizer folder that comes with the package: a token for each byte, and bos, eos and pad."""


def special_tokens(folder: str | Path) -> dict[str, str]:
    """Text of the folder's special tokens by role: "bos_token", "eos_token", "pad_token", ...

    special_tokens_map.json counts where the config lists no `added_tokens_decoder`, and then it wins.

    Raises:
        ConfigError: one of the two files is malformed.
    """
    config, by_map = (
        read_json(Path(folder) / name, "save the tokenizer again") if (Path(folder) / name).is_file() else {}
        for name in (CONFIG, MAP)
    )
    found = config if "added_tokens_decoder" in config else config | by_map
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in found.items()}
    return {key: text for key, text in texts.items() if key.endswith("_token") and text and isinstance(text, str)}


def read_tokenizer(folder: str, setting: str) -> Tokenizer:
    """The folder's fast tokenizer.

    Args:
        setting: what names the folder.

    Raises:
        ConfigError: there is no tokenizer.json, or it is none.
    """
    from tokenizers import Tokenizer

    path = os.path.join(folder, "tokenizer.json")
    if not os.path.isfile(path):
        raise ConfigError(
            f"{setting}: no tokenizer.json in {folder!r}; give a folder with a Hugging Face tokenizer"
            " (tests/assets/tokenizer has one for debugging)."
        )
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"{setting}: {path} is not a tokenizer: {error}.") from None


def special_id(folder: str | Path, role: str, tokenizer: Any) -> int | None:
    """The id of the folder's "bos", "eos" or "pad" token, None if it has none.

    Args:
        tokenizer: TorchTitan's or the tokenizers library's; its `token_to_id` turns the token into an id.
    """
    text = special_tokens(folder).get(f"{role}_token")
    return None if text is None else tokenizer.token_to_id(text)


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest token id, as ids may have holes; 0 for an empty vocabulary.

    Args:
        tokenizer: TorchTitan's, the tokenizers library's or transformers'; each has `get_vocab`, added tokens included.
    """
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def notes_on(special: Mapping[str, str]) -> list[str]:
    """What the user of these special tokens should know, one sentence each."""
    bos, eos, pad = (special.get(f"{role}_token") for role in ("bos", "eos", "pad"))
    if not eos:
        between = f"the begin token {bos!r} alone" if bos else "nothing"
        return [f"there is no end token (eos_token): {between} is between documents, and a model never learns to end"]
    if pad == eos:
        return [
            f"the pad token is the end token {eos!r}: labels that equal it are ignored, as in llm-foundry, and a model"
            " never learns to end; give the tokenizer a pad token of its own"
        ]
    return []


def check_separators(dataset: Mapping[str, Any], folder: str, tokenizer: Any, where: str) -> None:
    """The dataset's `eos_token_id` and `bos_token_id` must be the tokenizer's own, as in llm-foundry.

    Raises:
        ConfigError: one of them is not, and its `override_..._mismatch_error` is not set.
    """
    for role in ("eos", "bos"):
        given = dataset.get(f"{role}_token_id")
        override = f"override_{role}_token_id_mismatch_error"
        if given is None or dataset.get(override) or given == special_id(folder, role, tokenizer):
            continue
        own = _id_by_class(folder, role)
        if given != own:
            right = f"set {role}_token_id = {own}" if own is not None else f"leave {role}_token_id out"
            raise ConfigError(
                f"{where}.{role}_token_id: {given} is not the tokenizer's {role} token, which is"
                f" {'none' if own is None else own}: {right}, or, if the data has {given} between its documents,"
                f" {override} = true"
            )


def _id_by_class(folder: str, role: str) -> int | None:
    """The token's id with what tokenizer classes, such as GPT2Tokenizer, have where the folder names none."""
    return getattr(transformers_tokenizer(folder), f"{role}_token_id")


def transformers_tokenizer(folder: str, **options: Any) -> Any:
    """The folder's tokenizer as transformers makes it. Raises ConfigError where it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.hf_assets_path: no tokenizer for transformers in {folder!r}: {error}") from error
