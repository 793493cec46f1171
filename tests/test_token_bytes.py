"""Bytes of tokens, summed over a text's, are the bytes of the text: for each family of tokenizers."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

import tokenizers_made
from mosaic_photon.token_bytes import TokenBytes, bits_per_byte, table_of

TEXTS = ["some words, and a few more: for x in range(10)", "print(x)\n", "words to learn from the end", " some words"]
OTHER = ["naïve café, 東京 🙂 — “quoted”\n\n\tindented", "some  words   with spaces "]
"""Which a byte-level tokenizer has as they are, and so has one with byte tokens."""


def shipped(_: Path) -> Path:
    return Path("tests/assets/tokenizer")


def with_prefix(folder: Path) -> Path:
    return tokenizers_made.byte_level(folder, prefix=True)


def byte_fallback(folder: Path) -> Path:
    """Llama 2's kind: spaces as ▁, one before each text, and what has no token as its bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=named, show_progress=False)
    tokenizer.train_from_iterator(tokenizers_made.WORDS, trainer)
    made = tokenizers_made.json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][:3]
    return tokenizers_made.save(folder, Tokenizer.from_str(tokenizers_made.json.dumps(made)), bos_token="<s>")


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (shipped, TEXTS + OTHER),
        (tokenizers_made.byte_level, TEXTS + OTHER),
        (with_prefix, TEXTS[:-1] + OTHER),
        (tokenizers_made.tekken, TEXTS + OTHER),
        (byte_fallback, TEXTS + OTHER),
        (tokenizers_made.metaspace, TEXTS[:1] + TEXTS[2:3]),
        (tokenizers_made.word_piece, ["some words, and a few more", "words to learn from the end.", "print"]),
        (tokenizers_made.word_level, ["some"]),
    ],
)
def test_the_tokens_of_a_text_have_its_bytes(tmp_path: Path, make: Callable[[Path], Path], texts: list[str]) -> None:
    tokenizer: Any = Tokenizer.from_file(str(make(tmp_path / "tokenizer") / "tokenizer.json"))
    table = TokenBytes.of(tokenizer)
    begin = int(np.flatnonzero(table.special)[0])
    for text in texts:
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
        before = np.concatenate([[begin], ids[:-1]])
        assert table.of_targets(ids, before).sum() == len(text.encode()), text
    assert table.of_targets(np.array([-100, begin]), np.array([5, 5])).tolist() == [0, 0]


def test_documents_one_after_another(tmp_path: Path) -> None:
    """The space that SentencePiece's kind puts before each is not the text's."""
    tokenizer = Tokenizer.from_file(str(byte_fallback(tmp_path / "tokenizer") / "tokenizer.json"))
    table, end = TokenBytes.of(tokenizer), tokenizer.token_to_id("</s>")
    ids = np.array([end, *(number for text in TEXTS for number in [*tokenizer.encode(text).ids, end])])
    assert table.of_targets(ids[1:], ids[:-1]).sum() == sum(len(text.encode()) for text in TEXTS)


def test_a_vocabulary_that_tells_no_text_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    assert table_of(SimpleNamespace(get_vocab=dict)) is None
    assert [record.message for record in caplog.records] == [
        "No bits_per_byte: the tokenizer does not say what text its tokens are."
    ]
    assert bits_per_byte(2.0, 10, 0) is None and bits_per_byte(np.log(2), 10, 5) == pytest.approx(2)
