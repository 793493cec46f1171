"""Where a large text file may be cut so that its parts' tokens are the whole's.

A cut lies between a line that ends in a letter, digit or punctuation mark and one that begins with such, but with no
slash. There a tokenizer's words end, or else the file stays whole: one that puts a space before each text, as
SentencePiece does, trims its ends, or has words that cross lines has no harmless cut.
"""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCAL_NORMALIZERS = {"Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "BertNormalizer"}
"""Those that change each character, or each with the marks on it, alone."""
WORD_SPLITTERS = {"ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
LOOKS_BACK = ("(?<", r"\b", r"\B", r"\A", r"\G", r"\Z", r"\z", "^", "$")
"""What lets a pattern know what is before a word, or where a text begins and ends."""
ENDS = ("a", "Word", "ALL", "don't", "'s", "x1", "42", "1234", ".", ").", "...", "--", "=", "_", "é", "日本", "語。")
NO_START = "/"
"""It belongs to the line end before it for the tokenizers of GPT-4o's and Mistral's kind."""
STARTS = ["a", "Word", "'s", "s", "'ll", "ll", "7", "345", "...", "#!", "_x", "é", "日本"]
STARTS += string.punctuation.replace(NO_START, "")


def is_cut(before: bytes, after: bytes) -> bool:
    """Whether a file may be cut between a line, with its line end, and the next."""
    last, first = before[-7:-1].decode("utf-8", "ignore")[-1:], after[:4].decode("utf-8", "ignore")[:1]
    return before.endswith(b"\n") and _is_plain(last) and _is_plain(first) and first not in NO_START


def are_harmless(tokenizer_file: str, tokenizer: Any) -> bool:
    """Whether the tokens of a text are, for this tokenizer, those of its parts between cuts: by how it is built, and
    by trial on words of all sorts around a cut."""
    built = json.loads(Path(tokenizer_file).read_text("utf-8"))
    return _has_no_long_sight(built) and _passes_trial(tokenizer)


def _is_plain(character: str) -> bool:
    return character.isalnum() or (character != "" and character in string.punctuation)


def _has_no_long_sight(built: dict[str, Any]) -> bool:
    added = built.get("added_tokens") or []
    if any("\n" in token["content"] or token.get("lstrip") or token.get("rstrip") for token in added):
        return False
    if not all(_is_local(part) for part in _parts(built.get("normalizer"), "normalizers")):
        return False
    splitters = list(_parts(built.get("pre_tokenizer"), "pretokenizers"))
    return bool(splitters) and all(_splits_locally(part) for part in splitters)


def _parts(part: dict[str, Any] | None, members: str) -> Iterator[dict[str, Any]]:
    if part is not None and part["type"] == "Sequence":
        for member in part[members]:
            yield from _parts(member, members)
    elif part is not None:
        yield part


def _is_local(normalizer: dict[str, Any]) -> bool:
    pattern = (normalizer.get("pattern") or {}).get("String")
    if normalizer["type"] == "Replace":
        return pattern is not None and "\n" not in pattern and "\n" not in normalizer["content"]
    return normalizer["type"] in LOCAL_NORMALIZERS


def _splits_locally(splitter: dict[str, Any]) -> bool:
    if splitter["type"] not in WORD_SPLITTERS or splitter.get("add_prefix_space"):
        return False
    pattern = splitter.get("pattern") or {}
    regex = pattern.get("Regex", "").replace("[^", "[")  # the ^ of a class of characters sees nothing else
    return not any(sight in regex for sight in LOOKS_BACK) and "\n" not in pattern.get("String", "")


def _passes_trial(tokenizer: Any) -> bool:
    pairs = [(f"one two {end}\n", f"{start} three") for end, start in itertools.product(ENDS, STARTS)]
    for left, right in pairs:
        words = tokenizer.pre_tokenizer.pre_tokenize_str(left + right)
        if any(begin < len(left) < end for _, (begin, end) in words):
            return False
    return all(_ids(tokenizer, left + right) == _ids(tokenizer, left) + _ids(tokenizer, right) for left, right in pairs)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids  # not by batch: its threads would be forked
