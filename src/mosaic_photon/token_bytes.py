"""How many bytes of text each token stands for, so that the losses of models with different tokenizers compare."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.tokenizers import vocabulary_size

WORD_MARK = "▁"
"""A space, in the tokens of SentencePiece's kind."""
CLOSING = frozenset(".,!?")
"""What WordPiece's decoder writes without a space before it."""
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class TokenBytes:
    """Of a vocabulary, by token id."""

    lengths: NDArray[np.int64]
    """Bytes in UTF-8; 0 for special tokens, which are not text."""
    special: NDArray[np.bool_]
    added_space: NDArray[np.bool_]
    """Begins with a space that is not the text's if it comes first in one."""

    @classmethod
    def of(cls, tokenizer: Any) -> TokenBytes:
        """The table of a tokenizer of the tokenizers library.

        Exact for byte-level tokenizers, for SentencePiece's kind, with byte tokens or without, and for others whose
        tokens are the text. What a normalizer takes away or changes (case, accents, double spaces) counts as changed.
        WordPiece forgets which spaces a text has: those count that its decoder writes.
        """
        made = json.loads(tokenizer.to_str())
        parts = [*_parts(made["normalizer"]), *_parts(made["pre_tokenizer"])]
        byte_level = any(part["type"] == "ByteLevel" for part in [*parts, *_parts(made["decoder"])])
        alphabet = _byte_alphabet() if byte_level else set()
        word_prefix = made["model"].get("continuing_subword_prefix") if made["model"]["type"] == "WordPiece" else None
        begins_word = (WORD_MARK, "Ġ") if alphabet else WORD_MARK
        added = {token["id"]: token for token in made["added_tokens"]}
        size = vocabulary_size(tokenizer)
        lengths, special, spaced = np.zeros(size, np.int64), np.zeros(size, bool), np.zeros(size, bool)
        for text, number in tokenizer.get_vocab().items():
            token = added.get(number)
            special[number] = token is not None and token["special"]
            if special[number]:
                continue
            if token is None and alphabet.issuperset(text) and alphabet:
                lengths[number] = len(text)
            elif token is None and BYTE_TOKEN.fullmatch(text):
                lengths[number] = 1
            else:
                stands_for = _text_of(text, word_prefix)
                lengths[number] = len(stands_for.replace(WORD_MARK, " ").encode())
                spaced[number] = word_prefix is not None and stands_for.startswith(" ")
            spaced[number] |= token is None and text.startswith(begins_word)
        return cls(lengths, special, spaced & (word_prefix is not None or _adds_space(parts)))

    def of_targets(self, targets: NDArray[np.int64], before: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of each target token, in the targets' shape.

        Args:
            targets: token ids; negative ones, as ignored labels are, have no bytes.
            before: the token before each. After a special one a text begins.
        """
        ids = np.maximum(targets, 0)
        found = self.lengths[ids] - (self.added_space[ids] & self.special[before])
        return np.where(targets < 0, 0, found)

    def of_batch(self, input_dict: Mapping[str, Any], labels: Any) -> int:
        """Bytes of the text that a batch's labels stand for.

        Args:
            input_dict: "input", int64 [B, S] on the host.
            labels: int64 [B, S] on the host, each the token after the input at its place; negative where ignored.
        """
        return int(self.of_targets(labels.numpy(), input_dict["input"].numpy()).sum())


def table_of(tokenizer: Any) -> TokenBytes | None:
    """The table of TorchTitan's tokenizer; None, which rank 0 says, where its tokens are not known to be text."""
    inner = getattr(tokenizer, "tokenizer", None)
    table = TokenBytes.of(inner) if hasattr(inner, "to_str") else None
    if table is not None and table.lengths.any():
        return table
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger(__name__).warning("No bits_per_byte: the tokenizer does not say what text its tokens are.")
    return None


def bits_per_byte(loss: float, labels: int, text_bytes: int) -> float | None:
    """A mean loss of so many labels, in nats, as bits for each byte of their text; None where they have none."""
    return loss * labels / text_bytes / math.log(2) if text_bytes else None


def numbers_of(loss: float, labels: int, text_bytes: int) -> dict[str, float | None]:
    """A mean loss as it is reported: with its perplexity and bits_per_byte, None where the labels stand for no text."""
    perplexity = math.inf if loss >= 700 else math.exp(loss)
    return {"loss": loss, "perplexity": perplexity, "bits_per_byte": bits_per_byte(loss, labels, text_bytes)}


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
    """A token of WordPiece with the space that its decoder writes before a word; any other is its text."""
    if word_prefix is None or token in CLOSING:
        return token
    return token.removeprefix(word_prefix) if token.startswith(word_prefix) else f" {token}"


def _byte_alphabet() -> set[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())
