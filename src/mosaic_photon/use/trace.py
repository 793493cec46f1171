"""Which samples a job's steps see: computed from the job, its data and its newest checkpoint, without training code."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.checkpoints.contents import DATA_STATE, SCHEDULE_POSITION, read_values, saved_position
from mosaic_photon.checkpoints.find import checkpoint_folder, find_start, is_complete, step_folders
from mosaic_photon.dataloader.build import open_loader
from mosaic_photon.dataloader.loader import STATE_KEY, DataSpecDataLoader
from mosaic_photon.dataloader.order.deal import Layout, nodes_of_ranks, places_of_mesh, seats
from mosaic_photon.dataloader.order.skips import Skips
from mosaic_photon.dataloader.tokens import TokenBatches
from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.job.layout_checks import data_parallel_degree
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.prepare.tokenization import find_tokenizer, load_tokenizer

SHOWN = 80
"""Characters of a sample that are shown unless all are asked for."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Dealt:
    """A step's samples; arrays of shape (samples,), by rank and micro-batch."""

    step: int
    """As TorchTitan prints it, from 1."""
    batch: int
    """Of the plan, from 1: the step, but for what was skipped."""
    ids: Ids
    ranks: Ids
    """Data-parallel ranks."""
    micro_batches: Ids
    """Of the rank, in the step, from 0."""

    def only(self, wanted: Ids) -> Dealt:
        """With these samples alone."""
        kept = np.isin(self.ids, wanted)
        parts = {name: getattr(self, name)[kept] for name in ("ids", "ranks", "micro_batches")}
        return dataclasses.replace(self, **parts)


class Run:
    """A job's plan and data, open to be looked at."""

    def __init__(self, job: MosaicJobConfig, loader: DataSpecDataLoader, tokenizer: Any, first_step: int) -> None:
        """
        Args:
            job: the job.
            loader: its loader, which need not be able to read batches; its layout's seats are the job's.
            tokenizer: of the tokenizers library.
            first_step: the step that gets the plan's first batch that is not passed over.
        """
        self.job, self.loader, self.tokenizer, self.first_step = job, loader, tokenizer, first_step
        self.skips = loader.skips_of(loader.progress)
        self.data = loader.data
        self.dataset = loader.data.dataset
        config = job.mosaic.dataloader["dataset"]
        self.width: int = config.get("max_seq_len") or job.training.seq_len + 1
        """Tokens that the job takes of a sample."""

    def batch_of(self, step: int) -> int:
        """The plan's batch, from 0, that a step gets. Raises ConfigError for a step that the run does not have."""
        last = self.job.training.steps
        if not self.first_step <= step <= last:
            since = f", and reads these data from step {self.first_step} on" if self.first_step > 1 else ""
            raise ConfigError(f"step {step}: the job has the steps 1 to {last:,} (training.steps){since}.")
        return self.skips.batch_of(step - self.first_step)

    def step_of(self, batch: int) -> int | None:
        """The step that gets a batch of the plan, from 0; None for one that is passed over."""
        after = self.skips.step_of(batch)
        return None if after is None else after + self.first_step

    @property
    def first_known(self) -> int:
        """The first batch of the plan that the data tell: those before a change of the data they do not."""
        plan = self.loader.plan
        try:
            plan.place(0)
        except ConfigError:
            return (getattr(plan, "before", None) or plan).origin.first_known
        return 0

    def deal(self, step: int) -> Dealt:
        """The samples of a step, and which rank gets which. Raises ConfigError as `batch_of`."""
        batch, layout = self.batch_of(step), self.loader.layout
        parts = []
        for rank in range(layout.dp_world_size):
            own = dataclasses.replace(layout, dp_rank=rank)
            parts.append(np.concatenate(list(self.loader.plan.blocks(batch, batch + 1, own))))
        ids = np.stack(parts)  # [ranks, micro-batches, local batch]
        ranks, micro_batches, _ = np.indices(ids.shape)
        return Dealt(step, batch + 1, ids.ravel(), ranks.ravel(), micro_batches.ravel())

    def seen(self, wanted: Ids, advance: Callable[[int], object]) -> Iterator[Dealt]:
        """The steps that see one of these samples, with those of them that they see.

        Args:
            wanted: sample ids.
            advance: told the batches that have been looked through.
        """
        plan, last = self.loader.plan, self.batch_of(self.job.training.steps)
        everything = Layout(1, 0, plan.global_batch, plan.global_batch)
        is_wanted = np.zeros(self.dataset.num_samples, bool)
        is_wanted[wanted] = True
        batch = self.first_known
        while batch <= last:
            for block in plan.blocks(batch, min(plan.end(batch), last + 1), everything):
                for row in np.flatnonzero(is_wanted[block].any(1)).tolist():
                    if (step := self.step_of(batch + row)) is not None:
                        yield self.deal(step).only(wanted)
                batch += len(block)
                advance(len(block))

    def sample_id(self, name: str) -> int:
        """Of a sample named STREAM:N. Raises ConfigError for one that there is not."""
        stream, colon, number = name.rpartition(":")
        if not colon or not number.isdecimal():
            raise ConfigError(f"--sample {name!r}: expected STREAM:N, e.g. {self.dataset.stream_names[0]}:0.")
        if stream not in self.dataset.stream_names:
            raise ConfigError(
                f"--sample {name!r}: there is no stream {stream!r}.{nearest(stream, self.dataset.stream_names)}"
            )
        at = self.dataset.stream_names.index(stream)
        samples = int(self.dataset.samples_per_stream[at])
        if int(number) >= samples:
            raise ConfigError(
                f"--sample {name!r}: stream {stream!r} has {samples:,} samples, numbered from 0 to {samples - 1:,}."
            )
        return int(self.dataset.sample_offset_per_stream[at]) + int(number)

    def described(self, dealt: Dealt, full: bool = False) -> list[dict[str, Any]]:
        """Each of a step's samples, read: where it is stored, who gets it, and its text, all of it or its beginning."""
        shards, indexes = self.dataset.locate(dealt.ids)
        streams = self.dataset.stream_per_shard[shards]
        samples = []
        for at, ids in enumerate(self.data.in_turn(lambda: iter([dealt.ids.reshape(-1, 1)]))):
            tokens, text = self.read(int(ids[0]), None if full else SHOWN)
            samples.append({
                "stream": self.dataset.stream_names[streams[at]],
                "shard": self.dataset.shards[int(shards[at])].raw.basename,
                "index": int(indexes[at]),
                "sample": int(ids[0] - self.dataset.sample_offset_per_stream[streams[at]]),
                "rank": int(dealt.ranks[at]),
                "micro_batch": int(dealt.micro_batches[at]),
                "tokens": tokens,
                "text": text,
            })  # fmt: skip
        return samples

    def read(self, sample_id: int, characters: int | None = None) -> tuple[int | None, str]:
        """Tokens that the job takes of a sample, and their text, or its first characters.

        The number is None where only llm-foundry's collator knows it.

        Raises:
            DataError: the sample cannot be read.
        """
        batches = self.data.make_batch
        if isinstance(batches, TokenBatches):
            tokens = batches.tokens(sample_id)
            # four bytes make a character, and a token may be one of them
            return len(tokens), self.decode(tokens if characters is None else tokens[: 4 * characters])[:characters]
        values = self.dataset.get_item(sample_id)
        if "text" in values:
            return min(self.width, len(self.tokenizer.encode(values["text"]).ids)), values["text"][:characters]
        return None, json.dumps(values, default=repr, ensure_ascii=False)[:characters]

    def decode(self, tokens: NDArray[np.integer]) -> str:
        """Token ids as text, special tokens too."""
        text: str = self.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        return text

    def close(self) -> None:
        """Close files and connections, and end what runs beside."""
        self.loader.close()


def open_run(job: MosaicJobConfig, nodes: int, per_node: int | None, read: bool = False) -> Run:
    """The plan of a job, as the newest of its checkpoints knows it.

    Args:
        job: as loaded.
        nodes: that the job runs on.
        per_node: processes of each; None: as few as the job's parallel degrees have.
        read: batches will be asked for, for which data of no tokens need llm-foundry.

    Raises:
        ConfigError: the job cannot have this layout, or cannot be trained on the data.
    """
    degrees = job.parallelism
    inner = degrees.tensor_parallel_degree * degrees.context_parallel_degree
    data_parallel = degrees.data_parallel_replicate_degree * max(1, degrees.data_parallel_shard_degree)
    least = inner * degrees.pipeline_parallel_degree * data_parallel
    per_node = math.ceil(least / max(1, nodes)) if per_node is None else per_node
    if nodes < 1 or per_node < 1:
        raise ConfigError(f"--nnodes {nodes} --nproc-per-node {per_node}: both must be at least 1, as in torchrun.")
    ranks = data_parallel_degree(job, nodes * per_node)
    turns = seats(nodes_of_ranks(places_of_mesh(nodes * per_node, per_node, ranks, inner)))
    layout = Layout.of(ranks, 0, job.training.local_batch_size, job.training.global_batch_size, turns)
    tokenizer = load_tokenizer(find_tokenizer(job.model.hf_assets_path)[0])
    state, steps = newest_state(job)
    loader = open_loader(layout, tokenizer, job, state, read)
    if state is not None:
        loader.load_state_dict({STATE_KEY: state})
    taken = loader.progress.batch - Skips(loader.progress.skipped).count
    return Run(job, loader, tokenizer, 1 + steps - taken)


def newest_state(job: MosaicJobConfig) -> tuple[str | None, int]:
    """The data state of the newest checkpoint that has one, or of `load_step`, and the steps before it.

    (None, 0) where there is none.
    """
    if job.checkpoint.enable and job.checkpoint.load_step == -1:
        for path in filter(is_complete, reversed(step_folders(checkpoint_folder(job)).values())):
            state, steps = read_values(path, DATA_STATE, SCHEDULE_POSITION)
            if state is not None:
                return state, int(steps or 0)
    return saved_position(find_start(job), job)


def steps_of(text: str) -> range:
    """The steps that `1200` or `1200-1210` names. Raises ConfigError for another text."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match:
        raise ConfigError(f"--step {text!r}: expected a step, e.g. 1200, or several, e.g. 1200-1210.")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ConfigError(f"--step {text}: ends before it begins.")
    return range(first, last + 1)
