"""Where a run is in its data, what fixed the order of samples, and the JSON that a checkpoint keeps of both."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mosaic_photon.dataloader.node.settings import KnownData, KnownStream
from mosaic_photon.dataloader.order.plan import BEGIN, Origin, Plan
from mosaic_photon.dataloader.order.skips import Ranges, Skips
from mosaic_photon.dataloader.staging import NOT_OF_STAGES, changes
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.stages import STAGES

if TYPE_CHECKING:
    from mosaic_photon.dataloader.dataset import ShardedDataset

VERSION = 2
ORDER_SETTINGS = (
    "batching_method",
    "sampling_method",
    "sampling_granularity",
    "partition_algo",
    "num_canonical_nodes",
    "epoch_size",
)


@dataclass(frozen=True)
class Progress:
    """What the trainer has been handed, counted over all ranks."""

    epoch: int = 0
    samples_in_epoch: int = 0
    samples: int = 0
    """Since the first step of the run."""
    tokens: int = 0
    """Target positions, ignored ones included."""
    loss_tokens: int = 0
    """Target positions that the loss counts, as the trainer reported them to `add_loss_tokens`."""
    samples_in_step: int = 0
    """Of the optimizer step under way; a job saves between steps."""
    batch: int = 0
    """The plan's global batch that comes next, or is under way."""
    origin: Origin | None = BEGIN
    """Where the plan begins; None: an older release's state does not tell."""
    skipped: Ranges = ()
    """The plan's batches before `batch` that were passed over."""
    before: dict[str, Any] | None = None
    """The fingerprint and the origin of the plan before it, where a run without stages went on in stages."""

    def advance(self, samples: int, tokens: int, plan: Plan, skips: Skips) -> Progress:
        """After one more micro-batch of all ranks. The end of an epoch is the begin of the next."""
        in_step = self.samples_in_step + samples
        batches, in_step = divmod(in_step, plan.global_batch)
        counted = dataclasses.replace(self, samples=self.samples + samples, tokens=self.tokens + tokens)
        return counted.at(self.batch + batches, in_step, plan, skips)

    def at(self, batch: int, samples_in_step: int, plan: Plan, skips: Skips) -> Progress:
        """Where a batch of the plan comes next, or the first one after it that is not passed over."""
        skipped = self.skipped
        if (taken := skips.next(batch)) != batch:
            batch, skipped = taken, skips.before(taken).ranges
        epoch, begin = plan.place(batch)
        return dataclasses.replace(
            self,
            epoch=epoch,
            samples_in_epoch=begin + samples_in_step,
            samples_in_step=samples_in_step,
            batch=batch,
            skipped=skipped,
        )


def known_data(text: str) -> KnownData:
    """What a checkpoint's data state knows of the data. Raises ConfigError for a version that is not read here."""
    fingerprint = _parse(text)["fingerprint"]
    numbers = sorted(int(key.split(".")[1]) for key in fingerprint if key.endswith(".content"))
    streams = (
        KnownStream(fingerprint.get(f"streams.{n}.shards"), fingerprint[f"streams.{n}.content"]) for n in numbers
    )
    return KnownData(fingerprint["num_canonical_nodes"], tuple(streams))


def fingerprint_of(dataset: ShardedDataset, global_batch: int, local_batch: int, stages: str = "") -> dict[str, Any]:
    """All that fixes which samples an optimizer step gets: settings, and how many shards the streams hold and which.

    Streams are known by their place and content, not by names, folders or remotes: data may move. Nothing of the
    parallel layout is in it. The local batch is part of it only where batches of a device are drawn from one stream.
    `stages`, as a state keeps them, take the place of what says how an epoch is drawn.
    """
    settings = {name: getattr(dataset, name) for name in ORDER_SETTINGS}
    shuffling = ("shuffle_algo", "shuffle_block_size") if dataset.shuffle else ()
    settings |= {name: getattr(dataset, name) for name in ("shuffle", "shuffle_seed", *shuffling)}
    settings["global_batch_size"] = global_batch
    if dataset.batching_method == "device_per_stream":
        settings["local_batch_size"] = local_batch
    for number, (stream, index) in enumerate(zip(dataset.streams, dataset.shards.indexes, strict=True)):
        settings[f"streams.{number}.choose"] = int(stream.choose)
        settings[f"streams.{number}.shards"] = len(index)
        settings[f"streams.{number}.content"] = index.digest
    fingerprint = {key: value if isinstance(value, str | bool) else int(value) for key, value in settings.items()}
    return _in_stages(fingerprint) | {STAGES: stages} if stages else fingerprint


def dump_state(progress: Progress, fingerprint: dict[str, Any]) -> str:
    """The JSON text of a checkpoint, equal on all ranks."""
    state = {"version": VERSION, **dataclasses.asdict(progress), "fingerprint": fingerprint}
    return json.dumps(state, sort_keys=True)


def fingerprint_difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """A line for each key in which two fingerprints differ, '' if they do not."""
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return "\n".join(f"  {key}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}" for key in keys)


@dataclass(frozen=True)
class Saved:
    """What a checkpoint's data state says to a job that would go on from it."""

    progress: Progress
    fingerprint: dict[str, Any]
    difference: str
    """Between the fingerprints, behind the checkpoint where stages differ; '' if they do not differ."""
    ahead: str
    """Between the stages, ahead of the checkpoint."""


def load_state(text: str, fingerprint: dict[str, Any], allow_change: bool, names: Sequence[str]) -> Saved:
    """What a state says. `names` are those of the streams, for what is said of stages.

    Raises ConfigError where the fingerprint differs and `allow_change` is false, and for a state of another version.
    """
    state = _parse(text)
    saved = state["fingerprint"]
    fields = {field.name for field in dataclasses.fields(Progress)}
    values = {name: value for name, value in state.items() if name in fields}
    origin = Origin(**state["origin"]) if "origin" in state else None
    batch = state.get("batch", state["samples"] // saved["global_batch_size"])
    skipped = tuple((begin, end) for begin, end in state.get("skipped", ()))
    progress = Progress(**values | {"origin": origin, "batch": batch, "skipped": skipped})
    comparable = {
        key: value for key, value in fingerprint.items() if key in saved or state["version"] > 1 or not _counts(key)
    }
    difference, ahead = fingerprint_difference(saved, comparable), ""
    if STAGES in fingerprint:
        done = batch - origin.batch if origin else 0
        difference, ahead = _difference_in_stages(saved, comparable, done, names)
    if difference and not allow_change:
        size = "global_batch_size"  # unless it is set, it grows with the number of ranks
        hint = f" (set training.{size} = {saved[size]})" if saved.get(size) != fingerprint.get(size) else ""
        raise ConfigError(
            "the data config changes which samples the next steps get (checkpoint -> now):\n"
            f"{difference}\nRestore the data config{hint}, or go on knowingly with --mosaic.allow_data_change"
        )
    return Saved(progress, saved, difference, ahead)


def _in_stages(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Without what says how an epoch is drawn."""
    return {
        key: value for key, value in fingerprint.items() if key not in NOT_OF_STAGES and not key.endswith(".choose")
    }


def _difference_in_stages(
    before: dict[str, Any], after: dict[str, Any], done: int, names: Sequence[str]
) -> tuple[str, str]:
    """How a run in stages differs from what a state knows: behind it, and in its stages ahead of it.

    Streams may have come behind those that it knows, and the state may be of a run without stages.
    """
    before, after = _in_stages(before), dict(after)
    kept, now = before.pop(STAGES, None), after.pop(STAGES)
    known = sum(key.endswith(".content") for key in before)
    after = {key: value for key, value in after.items() if key in before or not _is_of_stream(key, known)}
    behind, ahead = changes(kept, now, done, names) if kept is not None else ("", "")
    behind = behind and f"  {STAGES}, {behind}"
    return "\n".join(filter(None, (fingerprint_difference(before, after), behind))), ahead


def _is_of_stream(key: str, first: int) -> bool:
    """Whether a fingerprint's key is of a stream from the `first` on."""
    return key.startswith("streams.") and int(key.split(".")[1]) >= first


def _parse(text: str) -> dict[str, Any]:
    """A state of version 1 or 2; the keys of version 1 held the streams' names, which are left out."""
    state: dict[str, Any] = json.loads(text)
    if state.get("version") not in (1, VERSION):
        raise ConfigError(
            f"the checkpoint's data state has version {state.get('version')!r}; this release reads versions 1 and"
            f" {VERSION}"
        )
    if state["version"] == 1:
        without_name = re.compile(r"streams\.(\d+)\..*\.(choose|content)", re.DOTALL)
        fingerprint = state["fingerprint"].items()
        state["fingerprint"] = {without_name.sub(r"streams.\1.\2", key): value for key, value in fingerprint}
    return state


def _counts(key: str) -> bool:
    """Whether the key is one of those that version 1 lacks."""
    return key.startswith("streams.") and key.endswith(".shards")
