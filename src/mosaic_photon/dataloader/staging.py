"""A data config's stages as a plan: of whole steps, judged against what a checkpoint knows, and told in words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from mosaic_photon.dataloader.node.folder import node_folder
from mosaic_photon.dataloader.order.orders import Orders
from mosaic_photon.dataloader.order.plan import Origin, StaticPlan, origin_of
from mosaic_photon.dataloader.order.skips import Skips
from mosaic_photon.dataloader.order.staged import HELD, StagedPlan
from mosaic_photon.dataloader.order.stages import Numbers, Shares, Stage
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.run_length import RunLength
from mosaic_photon.job.stages import Stages, steps_of

if TYPE_CHECKING:
    from mosaic_photon.dataloader.loader import BatchedDataset
    from mosaic_photon.dataloader.progress import Progress

NOT_OF_STAGES = ("batching_method", "sampling_method", "sampling_granularity", "epoch_size")
"""Settings that have no part in what a run in stages reads."""


@dataclass(frozen=True)
class Staging:
    """The stages of a data config in whole steps, and what is asked of them."""

    stages: tuple[Stage, ...]
    max_epochs: tuple[Mapping[int, float], ...]
    """Of each stage, by the stream's number."""
    where: str
    """Opens messages: the file and the key."""

    @classmethod
    def of(cls, stages: Stages, names: Sequence[str], run: RunLength, where: str) -> Staging:
        """Of a checked list of stages.

        Raises:
            ConfigError: a stage of less than half a step.
        """
        found: list[Stage] = []
        for number, stage in enumerate(stages, 1):
            steps = steps_of(stage, run, f"{where}, stage {number}")
            before = found[-1].shares if stage.get("ramp") else None
            found.append(Stage(_shares(stage["proportion"], names), steps, before))
        limits = [
            {names.index(str(name)): float(most) for name, most in (stage.get("max_epochs") or {}).items()}
            for stage in stages
        ]
        return cls(tuple(found), tuple(limits), where)

    def plan(self, data: BatchedDataset, global_batch: int) -> StagedPlan:
        """Of these data. Raises ConfigError if the settings make no pass of a stream."""
        order = data.dataset.order(1)

        def folder() -> Any:
            return node_folder(data.node_folder)

        passes = []
        for part, samples in zip(order.streams, data.dataset.samples_per_stream.tolist(), strict=True):
            alone = dataclasses.replace(part, choose=samples, proportion=1.0)
            of_stream = dataclasses.replace(order, streams=(alone,), batching_method="random", once=True)
            passes.append(Orders(of_stream, folder, HELD))
        return StagedPlan(tuple(passes), tuple(Numbers(one, global_batch, folder) for one in self.stages), global_batch)

    def check(self, plan: StagedPlan, skips: Skips, steps: int) -> None:
        """Judge the plan of a run of so many steps; 0: as far as it goes.

        Raises:
            ConfigError: the stages end before the run, or read a stream more often than they may.
        """
        begin, end = plan.origin.batch, skips.end_of(steps) if steps else None
        for number, (stage, limits) in enumerate(zip(self.stages, self.max_epochs, strict=True), 1):
            to = end if stage.batches is None else begin + stage.batches
            if end is not None and to is not None:
                to = min(to, end)
            if to is None or to <= begin:
                break
            for stream, most in limits.items():
                read = plan.read(begin, to)[:, stream]
                allowed = Fraction(str(most)) * int(plan.sizes[stream])
                if read[-1] > allowed:
                    batches = begin + int(np.searchsorted(read, int(allowed), side="right"))
                    step, last = skips.steps_before(batches - 1) + 1, skips.steps_before(to)
                    name, times = plan.names[stream], read[-1] / plan.sizes[stream]
                    raise ConfigError(
                        f"{self.where}, stage {number}.max_epochs.{name}: {most:g}, but step {step} begins to read it"
                        f" more often, and by step {last} it is read {times:.2f} times; lower its proportion or the"
                        " duration, or allow more"
                    )
            begin = to
        if end is not None and begin < end:
            raise ConfigError(
                f"{self.where}: the stages end after step {skips.steps_before(begin)}, the run after step {steps};"
                " leave out the duration of the last stage, which then goes on to the end"
            )

    def kept(self) -> str:
        """What a data state keeps of the stages."""
        return json.dumps([stage.as_json() for stage in self.stages])


def _shares(proportion: Mapping[Any, float], names: Sequence[str]) -> Shares:
    parts = {str(name): Fraction(str(value)) for name, value in proportion.items()}
    whole = sum(parts.values())
    return tuple(parts.get(name, Fraction(0)) / whole for name in names)


def changes(kept: str, now: str, done: int, names: Sequence[str]) -> tuple[str, str]:
    """How the stages of a checkpoint differ from those of now: behind `done` batches of them, and ahead; "" if not."""
    before, after = ([Stage.of_json(one) for one in json.loads(text)] for text in (kept, now))
    begin = 0
    for number, (old, new) in enumerate(zip_longest((_of(one, len(names)) for one in before), after), 1):
        if old == new and old is not None:
            begin += old.batches or 0
            continue
        shown = " -> ".join(in_words(one, names) if one else "(absent)" for one in (old, new))
        text = f"stage {number}: {shown}"
        lengths = [one.batches for one in (old, new) if one is not None and one.batches is not None]
        goes_on = old is not None and new is not None and dataclasses.replace(old, batches=new.batches) == new
        same_until = begin + min(lengths) if goes_on and lengths and new and new.before is None else begin
        return (text, "") if same_until < done else ("", text)
    return "", ""


def _of(stage: Stage, streams: int) -> Stage:
    """With no share of streams that came later."""
    more = (Fraction(0),) * (streams - len(stage.shares))
    return dataclasses.replace(stage, shares=stage.shares + more, before=stage.before and stage.before + more)


def in_words(stage: Stage, names: Sequence[str]) -> str:
    """One stage; `names` may be fewer than its streams were once."""
    shares = ", ".join(f"{name} {float(share):.4g}" for name, share in zip(names, stage.shares, strict=False) if share)
    length = "to the end" if stage.batches is None else f"{stage.batches:,} steps"
    return f"{length}, {'a ramp to ' if stage.before else ''}{shares}"


def rows_of(plan: StaticPlan | StagedPlan, skips: Skips, steps: int) -> Iterator[tuple[str, str]]:
    """Name and value of the lines that tell what a run of so many steps reads: epochs, or stages and passes."""
    if isinstance(plan, StaticPlan):
        epoch = plan.batches_per_epoch
        yield "epoch", f"{epoch:,} steps; the job's {steps:,} make {steps / epoch:.2f} epochs"
        return
    begin, end = plan.origin.batch, skips.end_of(steps)
    for number, stage in enumerate((one.stage for one in plan.stages), 1):
        if begin >= end:
            break
        first, last = skips.steps_before(begin), begin + (stage.batches or 0)
        taken = stage.batches and skips.steps_before(last) - first
        told = in_words(dataclasses.replace(stage, batches=taken), plan.names)
        yield f"stage {number}", f"from step {first + 1:,} on {told}"
        begin = last if stage.batches else end
    passes = ", ".join(f"{name} {much:.2f}" for name, much in zip(plan.names, plan.passes(end), strict=True))
    yield "passes", f"{passes} by step {steps:,}"


def origin_of_stages(data: BatchedDataset, state: Progress, fingerprint: dict[str, Any]) -> Progress:
    """A state of a run without stages as one whose stages begin where it is, each stream with a new pass."""
    begin = state.samples_in_epoch - state.samples_in_step
    origin = state.origin
    if origin is None:
        plan = static_before(data, {"fingerprint": fingerprint, "origin": {}})
        origin = origin_of(plan, state.batch, state.epoch, begin)
    return dataclasses.replace(
        state,
        origin=Origin(state.batch, state.epoch + (begin > 0)),
        before={"fingerprint": fingerprint, "origin": dataclasses.asdict(origin)},
        samples_in_step=0,
    )


def static_before(data: BatchedDataset, kept: Mapping[str, Any]) -> StaticPlan:
    """The plan of a run before its stages began, of the fingerprint and the origin that its state had then."""
    old, order = kept["fingerprint"], data.dataset.order(kept["fingerprint"]["global_batch_size"])
    chosen = [old[f"streams.{n}.choose"] for n in range(len(order.streams)) if f"streams.{n}.choose" in old]
    streams = tuple(
        dataclasses.replace(part, choose=choose, proportion=choose / max(1, sum(chosen)))
        for part, choose in zip(order.streams, chosen, strict=False)
    )
    changed = dataclasses.replace(
        order,
        streams=streams,
        batching_method=old["batching_method"],
        batch=old.get("local_batch_size", order.batch),
        balanced=old["sampling_method"] == "balanced",
        granularity=old["sampling_granularity"],
        shuffle=old["shuffle_algo"] if old["shuffle"] else None,
        seed=old["shuffle_seed"],
        block=old.get("shuffle_block_size", order.block),
    )
    orders = Orders(changed, lambda: node_folder(data.node_folder))
    return StaticPlan(orders, old["global_batch_size"], Origin(**kept["origin"]))
