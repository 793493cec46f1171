"""From a job config to loaders: TorchTitan's `build_dataloader_fn`, and its counterpart for validation."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from typing import Any

import torch

from mosaic_photon.dataloader.config import STREAMING_KEYS, check_loader, streams_of
from mosaic_photon.dataloader.dataset import ShardedDataset, build_streams
from mosaic_photon.dataloader.files import known_hashes
from mosaic_photon.dataloader.folders import settle_folders
from mosaic_photon.dataloader.index import DataError
from mosaic_photon.dataloader.layout import Layout
from mosaic_photon.dataloader.loader import Data, DataSpecDataLoader, EvalLoader
from mosaic_photon.dataloader.patience import patience_of
from mosaic_photon.dataloader.settings import Settings, in_force
from mosaic_photon.dataloader.tokenizer import pad_token_id
from mosaic_photon.dataloader.tokens import TokenBatches, Window
from mosaic_photon.errors import ConfigError
from mosaic_photon.job_config import MosaicJobConfig
from mosaic_photon.layout_checks import sequence_divisor

logger = logging.getLogger(__name__)


def build_mosaic_dataloader(
    dp_world_size: int, dp_rank: int, tokenizer: Any, job_config: MosaicJobConfig
) -> DataSpecDataLoader:
    """The training loader of one data-parallel rank. Raises ConfigError, DataError for what can't be trained on."""
    training = job_config.training
    layout = Layout.of(dp_world_size, dp_rank, training.local_batch_size, training.global_batch_size)
    with in_force(_settings(job_config)):
        data = _data(job_config, "dataloader", tokenizer, layout, training.seq_len)
    return DataSpecDataLoader(data, layout, training.seq_len, job_config.mosaic.allow_data_change)


def build_mosaic_eval_dataloader(
    dp_world_size: int, dp_rank: int, tokenizer: Any, job_config: MosaicJobConfig
) -> EvalLoader:
    """The validation loader of one data-parallel rank. Raises as `build_mosaic_dataloader`."""
    if not job_config.mosaic.eval_dataloader:
        raise ConfigError(
            f"validation is enabled, but {job_config.mosaic.config or 'the data config'} has no mosaic_eval_dataloader"
        )
    validation = job_config.validation
    layout = Layout.of(dp_world_size, dp_rank, validation.local_batch_size, -1)
    with in_force(_settings(job_config)):
        data = _data(job_config, "eval_dataloader", tokenizer, layout, validation.seq_len)
    return EvalLoader(data, layout)


def _settings(job_config: MosaicJobConfig) -> Settings:
    patience = patience_of(job_config, int(os.environ.get("WORLD_SIZE", 1)))
    return dataclasses.replace(Settings.of(job_config.mosaic), patience=patience)


def _data(job_config: MosaicJobConfig, which: str, tokenizer: Any, layout: Layout, seq_len: int) -> Data:
    where = f"{job_config.mosaic.config or 'data config'}: mosaic_{which}"
    loader = copy.deepcopy(getattr(job_config.mosaic, which))
    check_loader(loader, where)
    config = loader["dataset"]
    setting = "training.seq_len" if which == "dataloader" else "validation.seq_len"
    window = Window.of(config.get("max_seq_len"), seq_len, f"{where}.dataset", setting, sequence_divisor(job_config))
    config["max_seq_len"] = window.width
    settle_folders(config)
    dataset = _token_dataset(config, where) if loader["name"] == "text" else None
    if dataset is None:
        from mosaic_photon.dataloader.foundry import foundry_data

        data = foundry_data(loader, job_config.model.hf_assets_path, layout.local_batch, window)
    else:
        pad_id = pad_token_id(job_config.model.hf_assets_path, tokenizer)
        encoding = config.get("token_encoding_type") or "int64"
        vocab_size = 1 + max(tokenizer.get_vocab().values())  # ids may have holes
        make_batch = TokenBatches(dataset, window, pad_id, vocab_size, encoding)
        pin_memory = loader.get("pin_memory", True) and torch.cuda.is_available()
        data = Data(dataset, make_batch, pin_memory=pin_memory)
    _check_cache(data.dataset, job_config.mosaic.verify_cache)
    return data


def _token_dataset(config: dict[str, Any], where: str) -> ShardedDataset | None:
    """The dataset if all its samples are token arrays, None if some are text to be tokenised."""
    arguments = {key: value for key, value in config.items() if key in _STREAMING_ARGUMENTS and value is not None}
    dataset = ShardedDataset(streams=build_streams(streams_of(config)), **arguments)
    for number, kind in zip(dataset.shards.stream_of_kind, dataset.shards.kinds, strict=True):
        names = {column.name for column in kind.columns}
        if "text" in names:
            return None
        if "tokens" not in names:
            stream = dataset.cache.sources[number].name
            raise DataError(
                f"{where}: stream {stream!r} has neither a 'tokens' nor a 'text' column; it has {sorted(names)}"
            )
    return dataset


def _check_cache(dataset: ShardedDataset, hashes: bool) -> None:
    """The ranks of a node share the shards out; what one finds damaged, the others find by size when they open it."""
    rank, ranks = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cache = dataset.cache
    if hashes and rank == 0:
        pairs = zip(cache.shards.stream_of_kind, cache.shards.kinds, strict=True)
        bare = (cache.sources[number].name for number, kind in pairs if not known_hashes(kind.stored_hashes))
        for name in dict.fromkeys(bare):
            logger.warning(f"verify_cache: stream {name!r} has no hashes in its index: only sizes are compared")
    cache.check(hashes, slice(rank, None, ranks))


_STREAMING_ARGUMENTS = STREAMING_KEYS - {"streams", "remote", "local", "batch_size", "replication", "stream_config"}
