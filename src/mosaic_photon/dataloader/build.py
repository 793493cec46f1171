"""From a job config to loaders: TorchTitan's `build_dataloader_fn`, and its counterpart for validation."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import socket
from typing import Any

import torch
import torch.distributed as dist

from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.loader import BatchedDataset, DataSpecDataLoader, EvalLoader, not_read
from mosaic_photon.dataloader.node.folder import settle_folders
from mosaic_photon.dataloader.node.settings import KnownData, Settings, in_force
from mosaic_photon.dataloader.order.deal import Layout, nodes_of_ranks, seats
from mosaic_photon.dataloader.order.skips import Skips
from mosaic_photon.dataloader.order.staged import StagedPlan
from mosaic_photon.dataloader.progress import known_data
from mosaic_photon.dataloader.shards.files import known_hashes
from mosaic_photon.dataloader.shards.index import DataError
from mosaic_photon.dataloader.shards.patience import patience_of
from mosaic_photon.dataloader.staging import Staging
from mosaic_photon.dataloader.tokens import ANY_VOCABULARY, TokenBatches, Window
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.data_config import TRAIN, check_loader
from mosaic_photon.job.eval_sets import place_in_job
from mosaic_photon.job.layout_checks import sequence_divisor
from mosaic_photon.job.run_length import RunLength
from mosaic_photon.job.stages import STAGES
from mosaic_photon.job.tables import MosaicJobConfig, Training, Validation
from mosaic_photon.job.value_checks import eval_loaders_of
from mosaic_photon.tokenizers import check_separators, special_id, vocabulary_size

logger = logging.getLogger(__name__)


def build_mosaic_dataloader(
    dp_world_size: int, dp_rank: int, tokenizer: Any, job_config: MosaicJobConfig, state: str | None = None
) -> DataSpecDataLoader:
    """The training loader of one data-parallel rank.

    Args:
        dp_world_size: data-parallel ranks.
        dp_rank: which of them.
        tokenizer: TorchTitan's.
        job_config: the job.
        state: the data state of the checkpoint that the job will go on from. Shards that were appended since are left
            out, and data without what the checkpoint knew is refused. The loader stands at the first sample all the
            same: `load_state_dict` moves it.

    Raises:
        DataError: the data cannot be read.
        ConfigError: the job cannot be trained on it.
    """
    training = job_config.training
    sizes = training.local_batch_size, training.global_batch_size
    layout = Layout.of(dp_world_size, dp_rank, *sizes, seats_of_job(dp_world_size, dp_rank))
    return open_loader(layout, tokenizer, job_config, state)


def open_loader(
    layout: Layout, tokenizer: Any, job_config: MosaicJobConfig, state: str | None = None, read: bool = True
) -> DataSpecDataLoader:
    """`build_mosaic_dataloader` where the rank's place is known. A tokenizer is not needed where data are token ids.

    Args:
        read: False: only its plan and single samples will be asked; llm-foundry is not imported, the cache not checked.
    """
    training, allow_change = job_config.training, job_config.mosaic.allow_data_change
    known = known_data(state) if state is not None else None
    if known is not None and allow_change:
        known = dataclasses.replace(known, streams=())
    with in_force(_settings(job_config, known)):
        where = f"{job_config.mosaic.config or 'data config'}: {TRAIN}"
        data = _data(job_config, job_config.mosaic.dataloader, where, tokenizer, layout, training, read)
    skips, staging, ahead = Skips.parse(job_config.mosaic.skip_batches), None, ""
    if stages := job_config.mosaic.stages:
        run = RunLength(training.steps, layout.global_batch, layout.global_batch * training.seq_len)
        where = f"{job_config.mosaic.config or 'data config'}: {STAGES}"
        staging = Staging.of(stages, data.dataset.stream_names, run, where)
    loader = DataSpecDataLoader(data, layout, training.seq_len, allow_change, skips, staging)
    if state is not None:
        saved = loader.position_in(state)
        loader.begin, ahead = saved.progress, saved.ahead and f"changed ahead of the checkpoint: {saved.ahead}"
        if staging is not None and STAGES not in saved.fingerprint:
            ahead = f"the stages begin with batch {loader.begin.batch + 1} of the run, each stream with a new pass"
    plan = loader.plan_of(loader.begin)
    if staging is not None and isinstance(plan, StagedPlan):
        staging.check(plan, loader.skips_of(loader.begin), training.steps)
    if not read:
        return loader
    if staging is not None and ahead and os.environ.get("RANK", "0") == "0":
        logger.warning(f"{staging.where}: {ahead}")
    plan.open(loader.begin.batch)  # while the model is built
    return loader


def seats_of_job(dp_world_size: int, dp_rank: int) -> tuple[int, ...]:
    """The turn of each data-parallel rank in the deal, from the nodes that all processes say they run on.

    Collective over the job. Without a process group: (), one node.
    """
    if not dist.is_initialized():
        return ()
    node = os.environ.get("GROUP_RANK") or socket.gethostname()  # torchrun's number of its agent
    places: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(places, (dp_rank, node))
    nodes = nodes_of_ranks(places)
    return seats(nodes) if len(nodes) == dp_world_size else ()


def build_mosaic_eval_dataloader(
    dp_world_size: int, dp_rank: int, tokenizer: Any, job_config: MosaicJobConfig, label: str | None = None
) -> EvalLoader:
    """The validation loader of one data-parallel rank. Raises as `build_mosaic_dataloader`.

    Args:
        label: of which set; None where there is one.
    """
    loaders, validation = eval_loaders_of(job_config), job_config.validation
    where = job_config.mosaic.config or "data config"
    if label is None and len(loaders) == 1:
        (label,) = loaders
    if label is None or label not in loaders:
        raise ConfigError(f"{where} has no eval set {label or ''!r}; it has {', '.join(map(repr, loaders))}")
    layout = Layout.of(dp_world_size, dp_rank, validation.local_batch_size, -1)
    with in_force(_settings(job_config)):
        at = f"{where}: {place_in_job(label)}"
        data = _data(job_config, loaders[label], at, tokenizer, layout, validation)
    return EvalLoader(data, layout)


def build_mosaic_eval_dataloaders(
    dp_world_size: int, dp_rank: int, tokenizer: Any, job_config: MosaicJobConfig
) -> dict[str, EvalLoader]:
    """The validation loaders of one data-parallel rank, by label. Raises as `build_mosaic_dataloader`."""
    labels = eval_loaders_of(job_config)
    return {
        label: build_mosaic_eval_dataloader(dp_world_size, dp_rank, tokenizer, job_config, label) for label in labels
    }


def _settings(job_config: MosaicJobConfig, known: KnownData | None = None) -> Settings:
    patience = patience_of(job_config, int(os.environ.get("WORLD_SIZE", 1)))
    return dataclasses.replace(Settings.of(job_config.mosaic), patience=patience, known=known)


def _data(
    job_config: MosaicJobConfig,
    loader: dict[str, Any],
    where: str,
    tokenizer: Any,
    layout: Layout,
    table: Training | Validation,
    read: bool = True,
) -> BatchedDataset:
    loader = copy.deepcopy(loader)
    check_loader(loader, where)
    config, assets = loader["dataset"], job_config.model.hf_assets_path
    if tokenizer is not None:
        check_separators(config, assets, tokenizer, f"{where}.dataset")
    setting = f"{'training' if table is job_config.training else 'validation'}.seq_len"
    window = Window.of(
        config.get("max_seq_len"), table.seq_len, f"{where}.dataset", setting, sequence_divisor(job_config)
    )
    config["max_seq_len"] = window.width
    settle_folders(config)
    dataset = ShardedDataset(config)
    if loader["name"] == "text" and _holds_tokens(dataset, where):
        encoding = config.get("token_encoding_type") or "int64"
        pad_id = None if tokenizer is None else special_id(assets, "pad", tokenizer)
        vocab_size = ANY_VOCABULARY if tokenizer is None else vocabulary_size(tokenizer)
        make_batch = TokenBatches(dataset, window, pad_id, vocab_size, encoding)
        data = BatchedDataset(dataset, make_batch, make_batch.length, make_batch.fixed is not None)
        data.pin_memory = loader.get("pin_memory", True) and torch.cuda.is_available()
    elif tokenizer is None:
        raise ConfigError(f"{where}: these samples are no token ids; name a tokenizer, a folder with tokenizer.json")
    elif read:
        from mosaic_photon.dataloader.foundry_loader import foundry_data

        data = foundry_data(loader, dataset, assets, layout.local_batch, window)
    else:
        data = BatchedDataset(dataset, not_read, not_read)
    if read:
        _check_cache(dataset, job_config.mosaic.verify_cache)
    data.node_folder = job_config.mosaic.node_folder
    return data


def _holds_tokens(dataset: ShardedDataset, where: str) -> bool:
    """Whether all samples are token arrays; not so if some are text to be tokenised."""
    for stream, kind in dataset.kinds():
        names = {column.name for column in kind.columns}
        if "text" in names:
            return False
        if "tokens" not in names:
            raise DataError(
                f"{where}: stream {stream!r} has neither a 'tokens' nor a 'text' column; it has {sorted(names)}"
            )
    return True


def _check_cache(dataset: ShardedDataset, hashes: bool) -> None:
    """Check this process's part of the shards; another's damaged ones are found by their size when they are opened."""
    rank, ranks = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if hashes and rank == 0:
        for name in dict.fromkeys(name for name, kind in dataset.kinds() if not known_hashes(kind.stored_hashes)):
            logger.warning(f"verify_cache: stream {name!r} has no hashes in its index: only sizes are compared")
    dataset.cache.check(hashes, slice(rank, None, ranks))
