"""How many bytes of text each token stands for, so that the losses of models with different tokenizers compare."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.tokenizers import vocabulary_size

WORD_MARK = "▁"
"""A space, in the tokens of SentencePiece's kind."""
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class TokenBytes:
    """Of a vocabulary, by token id."""

    lengths: NDArray[np.int64]
    """Bytes in UTF-8; 0 for special tokens, which are not text."""
    special: NDArray[np.bool_]
    added_space: NDArray[np.bool_]
    """Begins with the space that the tokenizer puts before a text, if it comes first in one."""

    @classmethod
    def of(cls, tokenizer: Any) -> TokenBytes:
        """The table of a tokenizer of the tokenizers library.

        Exact for byte-level tokenizers, for SentencePiece's kind, with byte tokens or without, and for others whose
        tokens are the text. What a normalizer takes away or changes (case, accents, double spaces) counts as changed.
        """
        made = json.loads(tokenizer.to_str())
        parts = [*_parts(made["normalizer"]), *_parts(made["pre_tokenizer"])]
        byte_level = any(part["type"] == "ByteLevel" for part in [*parts, *_parts(made["decoder"])])
        alphabet = _byte_alphabet() if byte_level else set()
        word_prefix = made["model"].get("continuing_subword_prefix") if made["model"]["type"] == "WordPiece" else None
        added = {token["id"]: token for token in made["added_tokens"]}
        size = vocabulary_size(tokenizer)
        lengths, special, spaced = np.zeros(size, np.int64), np.zeros(size, bool), np.zeros(size, bool)
        for text, number in tokenizer.get_vocab().items():
            token = added.get(number)
            special[number] = token is not None and token["special"]
            spaced[number] = token is None and text.startswith((WORD_MARK, "Ġ") if alphabet else WORD_MARK)
            if special[number]:
                continue
            if token is None and alphabet.issuperset(text) and alphabet:
                lengths[number] = len(text)
            elif token is None and BYTE_TOKEN.fullmatch(text):
                lengths[number] = 1
            else:
                lengths[number] = len(_text_of(text, word_prefix).replace(WORD_MARK, " ").encode())
        return cls(lengths, special, spaced & _adds_space(parts))

    def of_targets(self, targets: NDArray[np.int64], before: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of each target token, in the targets' shape.

        Args:
            targets: token ids; negative ones, as ignored labels are, have no bytes.
            before: the token before each. After a special one a text begins.
        """
        ids = np.maximum(targets, 0)
        found = self.lengths[ids] - (self.added_space[ids] & self.special[before])
        return np.where(targets < 0, 0, found)


def _parts(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder."""
    if part is not None:
        yield part
        for name in ("normalizers", "pretokenizers", "decoders"):
            for inner in part.get(name, ()):
                yield from _parts(inner)


def _adds_space(parts: list[dict[str, Any]]) -> bool:
    """Whether the tokenizer puts a space before a text."""
    return any(
        (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        or (part["type"] == "Prepend" and part["prepend"] == WORD_MARK)
        or (part["type"] == "ByteLevel" and part["add_prefix_space"])
        for part in parts
    )


def _text_of(token: str, word_prefix: str | None) -> str:
    """A token of WordPiece with the space before a word; any other is its text."""
    if word_prefix is None:
        return token
    return token.removeprefix(word_prefix) if token.startswith(word_prefix) else f" {token}"


def _byte_alphabet() -> set[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())
