"""First stage: pieces of text -> one file of token ids per split, and a note of what is in it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.files import display
from mosaic_photon.prepare.objects import bring, scratch
from mosaic_photon.prepare.read import Fragment, read_pieces
from mosaic_photon.prepare.record import Options
from mosaic_photon.prepare.sources import Piece, stdlib_files
from mosaic_photon.stores import read, write
from mosaic_photon.tokenizers import special_tokens

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Tokenization:
    """How text becomes tokens, and which split a document goes to."""

    options: Options
    tokenizer_file: str
    bos: int | None  # put before each document; None: nothing
    eos: int | None  # put after each document
    pad: int | None = None  # fills up the last sample of each document; None: documents lie end to end


@dataclass
class Count:
    """What a part of the work put into each split."""

    tokens: dict[str, int]
    documents: dict[str, int]
    empty: int = 0  # documents left out
    special: int = 0  # special tokens' text in documents
    bad_lines: list[str] = field(default_factory=list)  # left out, each with its place; in its note only
    bad: int = 0  # how many
    kept: bool = False  # from an earlier run

    @classmethod
    def of_note(cls, note: bytes, kept: bool = False) -> Count:
        """Without the lines themselves."""
        count = cls(**json.loads(note))
        return replace(count, bad_lines=[], bad=len(count.bad_lines), kept=kept)


def load_tokenizer(file: str) -> Any:
    """The fast tokenizer of a tokenizer.json, without its truncation and padding."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:  # the library raises plain Exception for a malformed file
        raise ConfigError(f"{display(file)} is not a tokenizer of the tokenizers library: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def find_tokenizer(folder: str) -> tuple[str, dict[str, str]]:
    """(path of tokenizer.json, special tokens by name) of a Hugging Face tokenizer folder.

    Raises:
        ConfigError: no folder, no tokenizer.json in it, or a malformed file beside it.
    """
    root = Path(folder).expanduser().absolute()
    if root.is_file():
        root = root.parent
    file = root / "tokenizer.json"
    if not root.is_dir():
        raise ConfigError(
            f"tokenizer folder {folder!r} does not exist. Give a local folder with tokenizer.json, "
            "for example one that AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) wrote"
        )
    if not file.is_file():
        raise ConfigError(f"no tokenizer.json in {folder!r}: it must hold a fast tokenizer (use_fast=True)")
    return str(file), special_tokens(root)


def stdlib_tokens(tokenizer_folder: str, count: int) -> list[int]:
    """The first `count` tokens of the running Python's standard library: text that is always there."""
    tokenizer = load_tokenizer(find_tokenizer(tokenizer_folder)[0])
    ids: list[int] = []
    for path in stdlib_files():
        ids += tokenizer.encode(Path(path).read_text(encoding="utf-8", errors="replace")).ids
        if len(ids) >= count:
            break
    return ids[:count]


def token_id(tokenizer: Any, text: str | None, option: str) -> int | None:
    """The id of a special token; None for no text.

    Raises:
        ConfigError: the vocabulary has no such token.
    """
    if not text:
        return None
    if (number := tokenizer.token_to_id(text)) is None:
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        raise ConfigError(f"{option} {text!r} is not one token of the tokenizer.{nearest(text, added)}")
    return int(number)


def split_of(key: bytes, val: float) -> str:
    """The split of a document, from a hash of its text alone: the same in every run and on every machine."""
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return "val" if number < val * 2**64 else "train"


def tokenize_part(number: int, pieces: Sequence[Piece], how: Tokenization, folder: str) -> Count:
    """Write NUMBER.train.bin and NUMBER.val.bin (int32 ids) and, last, NUMBER.json with their counts.

    A note left by an earlier run stands for a finished part and is taken as it is. What is returned holds no lines.
    """
    note = part_file(folder, number, "json")
    with suppress(FileNotFoundError):
        return Count.of_note(read(note), kept=True)
    options, (tokenizer, special) = how.options, _worker_tokenizer(how.tokenizer_file, how.options.special_text)
    count = Count({split: 0 for split in SPLITS}, {split: 0 for split in SPLITS})
    bad_lines = count.bad_lines if options.bad_lines == "skip" else None
    with scratch(folder) as local:
        with ExitStack() as stack:
            streams = {split: stack.enter_context(open(local / split, "wb")) for split in SPLITS}
            for fragment in read_pieces(pieces, options.text_key, bad_lines):
                if not fragment.text:
                    count.empty += fragment.first
                    continue
                split = split_of(fragment.key, options.val)
                (encoding,) = tokenizer.encode_batch_fast([fragment.text], add_special_tokens=False)
                ids = around(encoding.ids, fragment, how)
                np.asarray(ids, np.int32).tofile(streams[split])
                count.tokens[split] += len(ids)
                count.documents[split] += fragment.first
                count.special += len(special.findall(fragment.text)) if special else 0
        for split in filter(count.tokens.get, SPLITS):
            bring(local / split, part_file(folder, number, f"{split}.bin"))
    content = json.dumps(asdict(count)).encode()
    write(note, content)
    return Count.of_note(content)


def around(ids: list[int], fragment: Fragment, how: Tokenization) -> list[int]:
    """A fragment's ids between the tokens that begin and end a document, filled up to whole samples if asked for."""
    begin, end = ([] if token is None else [token] for token in (how.bos, how.eos))
    ids = (begin if fragment.first else []) + ids + (end if fragment.last else [])
    if how.pad is not None:
        ids += [how.pad] * (-len(ids) % how.options.tokens_per_sample)
    return ids


def bad_lines_of(folder: str, number: int) -> list[str]:
    """The lines that a part left out, each with its place."""
    lines: list[str] = json.loads(read(part_file(folder, number, "json")))["bad_lines"]
    return lines


def part_file(folder: str, number: int, suffix: str) -> str:
    """What a part's work leaves: the token ids of a split, SPLIT.bin, or what was counted, json."""
    return f"{folder}/{number:06}.{suffix}"


@cache
def _worker_tokenizer(file: str, special_text: str) -> tuple[Any, re.Pattern[str] | None]:
    """The tokenizer, and what finds its special tokens' text, None if it has none."""
    tokenizer = load_tokenizer(file)
    tokenizer.encode_special_tokens = special_text == "text"
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    longest_first = sorted(special, key=len, reverse=True)
    return tokenizer, re.compile("|".join(map(re.escape, longest_first))) if special else None
