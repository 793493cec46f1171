"""Calls of mosaic-photon prepare on small made-up text, and what they wrote."""

import json
import random
from pathlib import Path

import numpy as np

from mosaic_photon.cli import main

TOKENIZER = str(Path(__file__).parent / "assets" / "tokenizer")
SEQ_LEN = 63


def documents(number, longest=200):
    """Text of uneven length in several scripts, as real documents have it."""
    rng = random.Random(number)
    words = ["def", "return", "straße", "日本語", "naïve", "self.value", "\n", "\n\n", "    ", "🙂", "x = 1"]
    return [" ".join(rng.choices(words, k=rng.randint(1, longest))) for _ in range(number)]


def prepare(*args, out, tokenizer=TOKENIZER, **options):
    options = {"seq-len": SEQ_LEN, "val": 0.2, "workers": 2} | options
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return main(["prepare", *map(str, args), "--out", str(out), "--tokenizer", tokenizer, *words])


def samples(folder):
    from streaming.base.format import reader_from_json

    index = json.loads((folder / "index.json").read_text())
    readers = [reader_from_json(str(folder.parent), folder.name, entry) for entry in index["shards"]]
    return np.stack([reader[i]["tokens"] for reader in readers for i in range(reader.samples)])


def tree(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def write_jsonl(path, texts, key="text"):
    path.write_text("".join(json.dumps({key: text, "id": i}) + "\n" for i, text in enumerate(texts)))
    return path
