"""Make the debug tokenizer: byte-level BPE of 2,048 tokens, trained on the running Python's standard library.

    python tests/assets/make_tokenizer.py [FOLDER]

The same Python gives the same files. The committed ones were made with Python 3.11; another version's library
gives slightly other merges, and nothing depends on which. The tokenizer that the package ships, a token a byte, is
trained on nothing: `make_tokenizer.py FOLDER --bytes`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mosaic_photon.prepare.sources import stdlib_files

SIZE = 2048
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
FILES_USED = 200  # evenly spread over the library: enough for 2,048 tokens


def train() -> Tokenizer:
    """The trained tokenizer; ids 0, 1, 2 are bos, eos and pad."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    files = stdlib_files()
    chosen = files[:: max(1, len(files) // FILES_USED)]
    tokenizer.train_from_iterator((Path(file).read_text("utf-8") for file in chosen), trainer)
    assert tokenizer.get_vocab_size() == SIZE, "too little text for the vocabulary"
    return tokenizer


def of_bytes() -> Tokenizer:
    """A token for each byte, after bos, eos and pad."""
    symbols = [BOS, EOS, PAD, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS, PAD])
    return tokenizer


def main(folder: Path, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,  # not eos: collators that mask padding would mask every end of a document
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
        "model_input_names": ["input_ids", "attention_mask"],  # so that model.generate(**tokenizer(text)) works
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    folders = [Path(word) for word in sys.argv[1:] if word != "--bytes"] or [Path(__file__).parent / "tokenizer"]
    main(folders[0], of_bytes() if "--bytes" in sys.argv else train())
