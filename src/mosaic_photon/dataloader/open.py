"""The batches of a data config without a job: for a notebook, a loop of one's own or another trainer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from mosaic_photon.dataloader.build import build_mosaic_eval_dataloader, open_loader
from mosaic_photon.dataloader.loader import STATE_KEY, DataSpecDataLoader, EvalLoader
from mosaic_photon.dataloader.order.deal import Layout, nodes_of_ranks, places_of_mesh, seats
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.data_config import DataConfig, load_data_config
from mosaic_photon.job.eval_sets import ONE, evaluator
from mosaic_photon.job.source import Source
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.tokenizers import read_tokenizer

Batch = tuple[torch.Tensor, torch.Tensor]
NO_WORKERS = (
    "open_data's batches are read ahead by threads of its own and can't be handed to worker processes: give the"
    " DataLoader num_workers=0, or iterate over what open_data returns"
)


def open_data(  # noqa: PLR0913  # all but the first are sizes of a job, given by name
    data: Source,
    *,
    seq_len: int,
    batch_size: int,
    global_batch_size: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    split: str = "train",
    dp_rank: int = 0,
    dp_world_size: int = 1,
    nodes: int = 1,
) -> MosaicData:
    """The batches that one rank of a job with these sizes reads, in the same order. Neither job nor ranks are needed.

    Args:
        data: a data config: its path, or its tables as a dict.
        seq_len: S, tokens of a row, as `training.seq_len`.
        batch_size: B, rows of a batch, as `training.local_batch_size`.
        global_batch_size: samples of an optimizer step over all ranks; None is one batch of each.
        tokenizer: a folder with tokenizer.json, by which ids are checked against the vocabulary and padding is known.
            None: samples are token ids, and taken as they are.
        split: "train" is the training data, without end; "eval" the eval set, "eval/NAME" the one of this label of
            several, each sample once in every iteration.
        dp_rank: which data-parallel rank's part.
        dp_world_size: data-parallel ranks.
        nodes: over how many nodes the ranks lie, equally many on each; it says which rank gets which samples of a step.

    Raises:
        ConfigError: the first mistake in the arguments, the data config or the data.
    """
    _check_sizes(seq_len, batch_size, global_batch_size, dp_rank, dp_world_size, nodes)
    config, folder = load_data_config(data), os.fspath(tokenizer or "")
    label = _eval_label(split, config)
    job = MosaicJobConfig()
    job.mosaic.config, job.mosaic.dataloader, job.mosaic.eval_dataloaders = config.path, config.train, config.eval
    job.mosaic.stages = config.stages
    job.training.steps = 0  # there is no job
    job.model.hf_assets_path = folder
    job.training.seq_len = job.validation.seq_len = seq_len
    job.validation.local_batch_size = batch_size
    known = read_tokenizer(folder, "tokenizer") if folder else None
    with _in_arguments():
        if label is not None:
            return MosaicData(lambda _: build_mosaic_eval_dataloader(dp_world_size, dp_rank, known, job, label))
        turns = seats(nodes_of_ranks(places_of_mesh(dp_world_size, dp_world_size // nodes, dp_world_size, 1)))
        layout = Layout.of(dp_world_size, dp_rank, batch_size, global_batch_size or -1, turns)
        return MosaicData(lambda state: open_loader(layout, known, job, state))


def _eval_label(split: str, config: DataConfig) -> str | None:
    """Which of the config's eval sets a split is; None: it is "train"."""
    if split == "train":
        return None
    if split == "eval" and len(config.eval) == 1:
        return next(iter(config.eval))
    known = {evaluator(label): label for label in config.eval}
    if split == "eval" and not known:
        raise ConfigError(f"split = 'eval': {config.path} has no eval loader; add a [{ONE}] table.")
    if split not in known:
        names = ", ".join(map(repr, ["train", *(known or ["eval"])]))
        raise ConfigError(f"split = {split!r} must be one of {names}.")
    return known[split]


class MosaicData(IterableDataset[Batch]):
    """Batches `(inputs, labels)`, int64 [B, S] both; labels are shifted by one, ignored ones -100.

    An iteration goes on where the last one ended, and ends that one. Close it, or use it in a `with` statement, to end
    its threads.
    """

    def __init__(self, open_loader: Callable[[str | None], DataSpecDataLoader | EvalLoader]) -> None:
        """open_loader: opens the data, as the state of a run knew them where one is given."""
        self._open, self._loader = open_loader, open_loader(None)

    def __iter__(self) -> Iterator[Batch]:
        """Raises ConfigError for a sample that cannot be used, and in a DataLoader's worker."""
        if get_worker_info() is not None:
            raise ConfigError(NO_WORKERS)
        with _in_arguments():
            for inputs, labels in self._loader:
                yield inputs["input"], labels

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of a pass over the training data, None in stages; batches of a pass over the eval set."""
        loader = self._loader
        return len(loader) if isinstance(loader, EvalLoader) else loader.steps_per_epoch

    def state_dict(self) -> dict[str, str]:
        """What has been handed out so far, equal on all ranks; as a job's checkpoint has it, under "dataloader"."""
        return self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was saved, here or in a job, whatever its number of ranks and nodes.

        Raises:
            ConfigError: the data or the sizes change which samples the coming steps get.
        """
        with _in_arguments():
            loader = self._open(state_dict.get(STATE_KEY))
            try:
                loader.load_state_dict(state_dict)
            except ConfigError:
                loader.close()
                raise
        self.close()
        self._loader = loader

    def close(self) -> None:
        """End its threads, close its files. It can be iterated again."""
        self._loader.close()

    def __enter__(self) -> MosaicData:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise ConfigError(NO_WORKERS)


def _check_sizes(
    seq_len: int, batch_size: int, global_batch_size: int | None, dp_rank: int, dp_world_size: int, nodes: int
) -> None:
    sizes = {"seq_len": seq_len, "batch_size": batch_size, "dp_world_size": dp_world_size, "nodes": nodes}
    if global_batch_size is not None:
        sizes["global_batch_size"] = global_batch_size
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"{name} = {size!r} must be a whole number of at least 1.")
    if dp_rank not in range(dp_world_size):
        raise ConfigError(f"dp_rank = {dp_rank!r} must be one of dp_world_size {dp_world_size}, counted from 0.")
    if dp_world_size % nodes:
        raise ConfigError(f"nodes = {nodes} must divide dp_world_size {dp_world_size}: each has equally many ranks.")


ARGUMENTS = {
    r"(training|validation)\.(global_batch_size|seq_len)": r"\2",
    r"(training\.|validation\.)?\blocal_batch_size": "batch_size",
    r"model\.hf_assets_path": "tokenizer",
    r"mosaic\.node_folder": "TMPDIR",
    r",?;? or (set|run with|go on knowingly with) (--)?mosaic\.\w+.*$": "",
}
"""What messages for a job call otherwise, or propose besides and a job alone can do: pattern -> in its place."""


@contextmanager
def _in_arguments() -> Iterator[None]:
    """Within it, messages speak of the arguments of `open_data` where they would name a job's settings."""
    try:
        yield
    except ConfigError as error:
        message = str(error)
        for pattern, ours in ARGUMENTS.items():
            message = re.sub(pattern, ours, message)
        error.args = (message,)
        raise
