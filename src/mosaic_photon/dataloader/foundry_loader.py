"""Loaders that need llm-foundry: text tokenised on the fly, and finetuning data.

`llmfoundry.data.dataloader.build_dataloader` gets the user's config and builds its dataset and collator. Both are taken
out of the DataLoader that it returns: the dataset turns what is stored of a sample into tokens, the collator makes a
batch of them. Which samples a batch has, and reading them, is this package's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.loader import BatchedDataset
from mosaic_photon.dataloader.shards.index import DataError
from mosaic_photon.dataloader.tokens import IGNORED, MicroBatch, Window, check_vocabulary, length_without
from mosaic_photon.errors import ConfigError, ask_upstream, is_ours
from mosaic_photon.foundry import foundry_module
from mosaic_photon.tokenizers import transformers_tokenizer, vocabulary_size


def foundry_data(
    loader: dict[str, Any], dataset: ShardedDataset, assets: str, local_batch: int, window: Window
) -> BatchedDataset:
    """The dataset with llm-foundry's batches of it. Raises ConfigError for what llm-foundry refuses in the config."""
    what = f"the data config's loader, {loader['name']!r} of no tokens,"
    build_dataloader = foundry_module("llmfoundry.data.dataloader", what).build_dataloader
    # Padding goes right: TorchTitan's batches have no attention mask, and behind the text it changes nothing.
    tokenizer = transformers_tokenizer(assets, padding_side="right")
    workers = loader.get("num_workers", 0)
    config = {"drop_last": True, "num_workers": 0, **loader}
    if workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warns in each forked worker
    else:
        config |= {"prefetch_factor": None, "persistent_workers": False}
    with _reading_from(dataset):
        kinds = (ValueError, TypeError, RuntimeError)
        refused = "the data config is refused by llm-foundry"
        spec = ask_upstream(refused, kinds, build_dataloader, config, tokenizer, local_batch)
    theirs = spec.dataloader
    collate = getattr(theirs.collate_fn, "base_collator", theirs.collate_fn)  # without a wrapper that no worker can get
    vocab_size = vocabulary_size(tokenizer)
    batches = FoundryBatches(dataset, theirs.dataset, collate, window, vocab_size, tokenizer.pad_token_id)
    data = BatchedDataset(dataset, batches, batches.length)
    data.workers = partial(_through_workers, batches, theirs) if workers else None
    data.pin_memory = theirs.pin_memory and torch.cuda.is_available()  # of batches, not of what they are cut from
    return data


@dataclass(frozen=True)
class FoundryBatches(Dataset[Any]):
    """Makes micro-batches with llm-foundry's dataset and collator. As torch's Dataset, it has the samples by id."""

    dataset: ShardedDataset
    lender: Any
    """llm-foundry's dataset, which lends its tokenising."""
    collate: Callable[[list[Any]], Mapping[str, torch.Tensor]]
    window: Window
    vocab_size: int
    pad_id: int | None

    def __call__(self, sample_ids: NDArray[np.int64]) -> MicroBatch:
        """The micro-batch of these samples; an id of -1 gives a row of ignored labels."""
        return self.micro_batch([self[int(sample_id)] for sample_id in sample_ids if sample_id >= 0], len(sample_ids))

    def __getitem__(self, sample_id: int) -> tuple[int, Any]:
        """The sample as llm-foundry makes it, behind its id. Raises DataError for one that it can't use."""
        with _naming(self.dataset, sample_id):
            return sample_id, self.lender[sample_id]

    def length(self, sample_id: int) -> int:
        """Tokens of a sample, without the pad tokens behind them."""
        return length_without(self.pad_id, self._collated([self[sample_id]])["input_ids"][0].numpy())

    def micro_batch(self, numbered: list[tuple[int, Any]], rows: int | None = None) -> MicroBatch:
        """TorchTitan's batch of samples behind their ids; those that `rows` asks for beyond them ignore all labels."""
        missing = (rows or 0) - len(numbered)
        if not numbered:  # a rank whose part of the last batch of validation is empty
            nothing = np.full((missing, self.window.width), IGNORED)
            return self.window.batch(np.zeros_like(nothing), nothing)
        batch = self._collated(numbered)
        ids, labels = batch["input_ids"], batch["labels"]
        if missing > 0:
            ids = torch.nn.functional.pad(ids, (0, 0, 0, missing))
            labels = torch.nn.functional.pad(labels, (0, 0, 0, missing), value=IGNORED)
        return self.window.batch(ids.numpy(), labels.numpy())

    def _collated(self, numbered: list[tuple[int, Any]]) -> Mapping[str, torch.Tensor]:
        """llm-foundry's batch. Raises DataError for the first sample that can't be used, or for all of them."""
        with _naming(self.dataset, numbered[0][0], " and the others of its batch"):
            try:
                batch = self.collate([sample for _, sample in numbered])
            except Exception:
                for sample_id, sample in numbered:
                    with _naming(self.dataset, sample_id):
                        self.collate([sample])
                raise
        sample_ids = [sample_id for sample_id, _ in numbered]
        check_vocabulary(self.dataset, batch["input_ids"].numpy(), sample_ids, self.vocab_size)
        return batch


@contextmanager
def _naming(dataset: ShardedDataset, sample_id: int, others: str = "") -> Iterator[None]:
    """Turn what llm-foundry raises for a sample into one message that names it; our own faults stay as they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ConfigError) or is_ours(error):
            raise
        raise DataError(
            f"{dataset.name_of(sample_id)}{others}: llm-foundry cannot use it ({type(error).__name__}: {error});"
            " mend it, or leave it out of the data"
        ) from error


@contextmanager
def _reading_from(dataset: ShardedDataset) -> Iterator[None]:
    """Within it, a StreamingDataset that is made opens nothing: its samples are those of `dataset`.

    llm-foundry's builders make their datasets themselves and take none that is given, so that nothing but
    StreamingDataset's constructor is left to be replaced.
    """
    from streaming.base.dataset import StreamingDataset

    theirs = StreamingDataset.__init__

    @wraps(theirs)  # its signature is the list of keys that llm-foundry takes from the config
    def ours(self: Any, **_: Any) -> None:
        self.get_item, self.length = dataset.get_item, dataset.epoch_size
        self.num_samples, self.num_canonical_nodes = dataset.num_samples, dataset.num_canonical_nodes

    StreamingDataset.__init__ = ours
    try:
        yield
    finally:
        StreamingDataset.__init__ = theirs


def _through_workers(
    batches: FoundryBatches, like: DataLoader[Any], ids: Iterator[NDArray[np.int64]]
) -> Generator[MicroBatch, None, None]:
    """The micro-batches of these sample ids, made by workers with llm-foundry's settings; they end with the iteration.

    Raises:
        DataError: a sample cannot be used.
        RuntimeError: a worker has ended.
    """
    loader = DataLoader(
        batches,
        batch_sampler=(batch.tolist() for batch in ids),
        collate_fn=batches.micro_batch,
        num_workers=like.num_workers,
        prefetch_factor=like.prefetch_factor,
        timeout=like.timeout,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # otherwise the workers' seed is drawn from the global generator
    )
    made = iter(loader)
    try:
        yield from made
    except ConfigError as error:  # torch puts the worker's traceback before the message
        name = f"{type(error).__module__}.{type(error).__qualname__}"
        raise type(error)(str(error).rpartition(f"\n{name}: ")[2].rstrip()) from None
    except (ConnectionError, EOFError) as error:  # the batch's memory is asked of the worker that made it
        raise RuntimeError(
            "a DataLoader worker ended while it handed over a batch; was it killed, e.g. for lack of memory?"
        ) from error
    finally:
        made._shutdown_workers()  # type: ignore[attr-defined]  # torch leaves it to the garbage collector


def _start_worker(_: int) -> None:
    info = torch.utils.data.get_worker_info()
    assert info is not None
    info.dataset.dataset.cache.close()  # type: ignore[attr-defined]  # connections can't be shared with the parent
