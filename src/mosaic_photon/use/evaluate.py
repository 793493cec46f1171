"""Loss, perplexity and bits per byte of a model over sets of samples, without a trainer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mosaic_photon.dataloader.build import build_mosaic_eval_dataloader
from mosaic_photon.dataloader.first_rows import first_rows, least_tokens
from mosaic_photon.dataloader.inspection import open_dataset
from mosaic_photon.dataloader.tokens import IGNORED
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.data_config import load_data_config
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.places import file_path
from mosaic_photon.prepare.listing import LeftOut
from mosaic_photon.prepare.read import read_piece
from mosaic_photon.prepare.sources import cut, find_sources
from mosaic_photon.prepare.tokenization import find_tokenizer, load_tokenizer
from mosaic_photon.token_bytes import TokenBytes, numbers_of
from mosaic_photon.tokenizers import special_id

Batch = tuple[dict[str, Tensor], Tensor]
"""{"input": int64 [B, S]}, and the label of each place, -100 where there is none."""
Sets = dict[str, Callable[[], Iterator[Batch]]]
"""Name -> what begins a pass over the set."""
Numbers = dict[str, dict[str, Any]]
"""Set or task -> metric -> value."""


@dataclass(frozen=True)
class Score:
    """Of one set."""

    loss: float
    """Mean over the labels, in nats."""
    tokens: int
    """Labels."""
    bytes: int
    """Of text that they stand for."""

    def numbers(self) -> dict[str, float | int | None]:
        """As they are reported; bits_per_byte is None where the labels stand for no text."""
        return {**numbers_of(self.loss, self.tokens, self.bytes), "tokens": self.tokens, "bytes": self.bytes}


@torch.no_grad()
def score(logits_of: Callable[[Tensor], Tensor], batches: Iterable[Batch], table: TokenBytes) -> Score:
    """The exact mean over a set's labels.

    Args:
        logits_of: from tokens int64 [B, S] to logits [B, S, V].

    Raises:
        ConfigError: there are no labels.
    """
    loss: Tensor | float = 0.0
    tokens = text_bytes = 0
    for input_dict, labels in batches:
        inputs = input_dict["input"]
        logits = logits_of(inputs).float().flatten(0, 1)
        targets = labels.to(logits.device).flatten()
        loss = loss + F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum").double()
        tokens += int((labels != IGNORED).sum())
        text_bytes += table.of_batch(input_dict, labels)
    if not tokens:
        raise ConfigError("there is nothing to evaluate: the set has no labels.")
    return Score(float(loss) / tokens, tokens, text_bytes)


def sets_of_data(job: MosaicJobConfig, tokenizer: Any, path: str) -> Sets:
    """The eval sets of a data config by label, as the job's validation reads them, its `validation.steps` too.

    Raises:
        ConfigError: the data config, or its data, cannot be read; it has no eval set.
    """
    data = load_data_config(path)
    if not data.eval:
        raise ConfigError(f"{path} has no eval loader: add a table [mosaic_eval_dataloader], or give --mds PATH.")
    job.mosaic.dataloader = data.train  # which says what is between documents
    limit = None if job.validation.steps == -1 else job.validation.steps
    return {
        label or "eval": _pass_over(job, tokenizer, loader, path, limit, label) for label, loader in data.eval.items()
    }


def sets_of_shards(job: MosaicJobConfig, tokenizer: Any, path: str) -> Sets:
    """All samples of a folder of MDS shards; or of each folder in it that has some, as `prepare` writes train and val.

    Raises:
        ConfigError: there are none, they hold no tokens, or are shorter than `validation.seq_len`.
    """
    local = file_path(path)
    if local is None:
        raise ConfigError(f"--mds {path!r}: this is no folder here; name an address in a data config, --data DATA.")
    path = local
    folders = [path, *sorted(os.path.join(path, name) for name in os.listdir(path))] if os.path.isdir(path) else []
    found = [folder for folder in folders if os.path.isfile(os.path.join(folder, "index.json"))]
    if not found:
        raise ConfigError(f"--mds {path!r}: there are no shards here, nor in a folder in it (no index.json).")
    named = {os.path.basename(os.path.abspath(folder)): folder for folder in (found[:1] if path in found else found)}
    loader = {"name": "text", "num_workers": 0, "drop_last": False}
    return {
        name: _pass_over(job, tokenizer, {**loader, "dataset": _dataset(folder, job.validation.seq_len)}, "--mds", None)
        for name, folder in named.items()
    }


def _dataset(folder: str, seq_len: int) -> dict[str, Any]:
    """As a data config would name these shards. Says so where the first samples are longer than what is read of one."""
    dataset = open_dataset({"dataset": {"local": folder}})
    try:
        rows, encoding = first_rows(dataset, folder)
        shortest = least_tokens(dataset, encoding, folder) or seq_len + 1
    finally:
        dataset.reader.close()
        dataset.cache.close()
    found: dict[str, Any] = {"local": folder, "shuffle": False}
    if encoding:
        found["token_encoding_type"] = encoding
    longest = max(map(len, rows))
    if shortest < seq_len:
        raise ConfigError(
            f"--mds {folder!r}: its samples have {shortest} tokens, less than the job's sequence length {seq_len}: set "
            f"seq_len = {shortest} in [validation], with enable = true."
        )
    if shortest == seq_len:  # llm-foundry's, whose last token has no target
        found["max_seq_len"] = seq_len
    if longest > (width := found.get("max_seq_len", seq_len + 1)):
        logging.getLogger(__name__).warning(
            f"note: --mds {folder!r}: of each sample's {longest:,} tokens the first {width:,} are read, by the job's "
            f"sequence length {seq_len:,}"
        )
    return found


def _pass_over(
    job: MosaicJobConfig, tokenizer: Any, loader: dict[str, Any], where: str, limit: int | None, label: str = ""
) -> Callable[[], Iterator[Batch]]:
    job.mosaic.config, job.mosaic.eval_dataloaders = where, {label: loader}
    opened = build_mosaic_eval_dataloader(1, 0, tokenizer, job)
    return lambda: islice(iter(opened), limit)


def sets_of_text(job: MosaicJobConfig, path: str) -> Sets:
    """Text as `prepare` reads it, its documents end to end with the tokenizer's begin and end tokens around each."""
    sources = find_sources([path], os.devnull, LeftOut(list))
    folder, seq_len, rows = job.model.hf_assets_path, job.validation.seq_len, job.validation.local_batch_size
    tokenizer = load_tokenizer(find_tokenizer(folder)[0])
    bos, eos = (special_id(folder, role, tokenizer) for role in ("bos", "eos"))
    begin = [] if bos in (None, eos) else [bos]

    def documents() -> Iterator[list[int]]:
        for source in sources:
            for piece in cut(source, cuttable=False):
                for fragment in read_piece(piece, "text"):
                    if not fragment.text:
                        continue
                    ids = tokenizer.encode(fragment.text, add_special_tokens=False).ids
                    end = [] if eos is None else [eos]
                    yield [*(begin if fragment.first else []), *ids, *(end if fragment.last else [])]

    return {"text": lambda: windows(documents(), seq_len, rows)}


def windows(documents: Iterable[list[int]], seq_len: int, rows: int) -> Iterator[Batch]:
    """Documents end to end in rows of `seq_len`; each token but the first is a label once. The last row may be part."""
    left: NDArray[np.int64] = np.zeros(0, np.int64)
    for ids in documents:
        left = np.concatenate([left, np.asarray(ids, np.int64)])
        while len(left) > rows * seq_len:
            block, left = left[: rows * seq_len + 1], left[rows * seq_len :]
            yield _batch(block[:-1], block[1:], seq_len)
    if len(left) > 1:
        fill = -(len(left) - 1) % seq_len
        yield _batch(np.pad(left[:-1], (0, fill)), np.pad(left[1:], (0, fill), constant_values=IGNORED), seq_len)


def _batch(inputs: NDArray[np.int64], labels: NDArray[np.int64], seq_len: int) -> Batch:
    return {"input": torch.from_numpy(inputs.reshape(-1, seq_len))}, torch.from_numpy(labels.reshape(-1, seq_len))
