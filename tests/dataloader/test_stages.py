"""A run in stages through its loaders: resume at any size, changes of stages, and a run that goes on in stages."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming.base.world import World

from mds_data import flat, job, numbers, streamings_work, write_mds
from mosaic_photon.cli.schedule import stream_panels
from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.loader import STATE_KEY
from mosaic_photon.dataloader.order.stages import PIECE
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.data_config import load_data_config

SIZES = {"web": 120, "code": 60, "math": 21}
BEGINS = {"web": 0, "code": 1000, "math": 2000}
STAGES = [
    {"duration": "640tok", "proportion": {"web": 0.8, "code": 0.2}},  # 5 steps of 8 samples of 16 tokens
    {"duration": "10ba", "ramp": True, "proportion": {"web": 0.5, "code": 0.4, "math": 0.1}},
    {"proportion": {"math": 3, "code": 1}, "max_epochs": {"math": 20}},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("streams")
    folders = {name: write_mds(root / name, count, start=BEGINS[name]) for name, count in SIZES.items()}
    return {"streams": {name: {"local": str(folder)} for name, folder in folders.items()}, "shuffle": True}


def staged(data: dict[str, Any], stages: Any = STAGES, steps: int = 40, **more: Any) -> Any:
    config = job(data, stages=stages, **more)
    config.training.steps = steps
    return config


def read(loader: Any, steps: int) -> list[list[int]]:
    """The samples of so many steps, sorted."""
    micro, layout = iter(loader), loader.layout
    of_step = layout.global_batch // layout.local_batch // layout.dp_world_size
    return [sorted(flat(numbers(next(micro)) for _ in range(of_step))) for _ in range(steps)]


def read_by_all(build: Any, config: Any, state: Any, ranks: int, steps: int) -> tuple[list[list[int]], Any]:
    """The samples of each step by all ranks, and the state behind them."""
    loaders = [build(config, ranks, rank) for rank in range(ranks)]
    for loader in loaders:
        loader.load_state_dict(state)
    parts = [read(loader, steps) for loader in loaders]
    states = {json.dumps(loader.state_dict()) for loader in loaders}
    assert len(states) == 1
    return [sorted(flat(part[step] for part in parts)) for step in range(steps)], json.loads(states.pop())


def of(stream: str, steps: list[list[int]]) -> list[int]:
    """How many samples of a stream each step has."""
    begin = BEGINS[stream]
    return [sum(begin <= number < begin + 1000 for number in step) for step in steps]


def test_steps_are_the_same_however_the_run_is_cut_and_dealt(build: Any, data: dict[str, Any]) -> None:
    whole = read(build(staged(data)), 40)
    assert sum(of("web", whole[:5])) == 32 and sum(of("math", whole[:5])) == 0
    assert of("math", whole[15:17]) == [6, 6] and sum(of("web", whole[15:])) == 0
    seen, state = [], {}
    for ranks, steps in ((1, 3), (2, 5), (4, 4), (1, 9), (4, 19)):  # twice within the ramp
        part, state = read_by_all(build, staged(data), state, ranks, steps)
        seen += part
    assert seen == whole


def test_a_stream_is_read_in_streamings_order_of_it_alone(build: Any, data: dict[str, Any]) -> None:
    config = staged(data | {"num_canonical_nodes": 2})
    whole = read(build(config), 40)
    for name, count in SIZES.items():
        alone = ShardedDataset({"num_canonical_nodes": 2, "shuffle": True, **data["streams"][name]})
        wanted: list[int] = []
        while len(wanted) < sum(of(name, whole)):
            work = streamings_work(alone, 1, World(1, 1, 1, 0), epoch=len(wanted) // count)
            wanted += dict.fromkeys(work[work >= 0].ravel().tolist())  # one that is repeated comes once
        begin = 0
        for step, number in zip(whole, of(name, whole), strict=True):
            mine = [sample - BEGINS[name] for sample in step if BEGINS[name] <= sample < BEGINS[name] + 1000]
            assert mine == sorted(wanted[begin : begin + number])
            begin += number


def test_stages_ahead_may_change_and_those_behind_may_not(
    build: Any, data: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    loader = build(staged(data))
    first = read(loader, 8)
    state = loader.state_dict()
    text = state[STATE_KEY]
    before, ramp, last = STAGES
    ahead = [
        [before, ramp, {"proportion": {"web": 1}}],
        [before, ramp, {"duration": "3ba", "proportion": {"web": 1}}, last],
    ]
    for stages in ahead:
        config = staged(data, stages)
        changed = build(config)
        changed.load_state_dict(state)
        assert sum(of("web", read(changed, 10)[7:])) == 24
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            from mosaic_photon.dataloader.build import build_mosaic_dataloader

            build_mosaic_dataloader(1, 0, None, config, text).close()
        (message,) = [record.getMessage() for record in caplog.records]
        assert "changed ahead of the checkpoint: stage 3: to the end, code 0.25, math 0.75 -> " in message
    behind = [
        ([{**before, "proportion": {"web": 1}}, ramp, last], "stage 1: 5 steps, web 0.8, code 0.2 -> 5 steps, web 1"),
        ([before, {**ramp, "duration": "9ba"}, last], "stage 2: 10 steps, a ramp to web 0.5"),
        ([{**before, "duration": "6ba"}, ramp, last], "stage 1"),
        ([before, last], "stage 2"),
    ]
    for stages, message in behind:
        with pytest.raises(ConfigError, match=f"(?s)checkpoint -> now.*mosaic_stages, {message}.*allow_data_change"):
            build(staged(data, stages)).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"mosaic_stages: .* -> \(absent\)"):
        build(job(data)).load_state_dict(state)
    longer = build(staged(data, [{**before, "duration": "9ba"}, ramp, last]))
    longer.load_state_dict(json.loads(json.dumps(early_state(build, data))))  # within the first stage its length may
    assert sum(of("math", read(longer, 6))) == 0
    assert first == read(build(staged(data)), 8)


def early_state(build: Any, data: dict[str, Any]) -> dict[str, str]:
    loader = build(staged(data))
    read(loader, 3)
    return loader.state_dict()


def test_a_stream_may_come_for_a_stage_ahead(build: Any, data: dict[str, Any]) -> None:
    known = {**data, "streams": {name: data["streams"][name] for name in ("web", "code")}}
    stages = [{"duration": "10ba", "proportion": {"web": 1, "code": 1}}]
    loader = build(staged(known, stages, 10))
    first = read(loader, 6)
    more = [*stages, {"proportion": {"math": 1}}]
    later = build(staged(data, more))
    later.load_state_dict(loader.state_dict())
    seen = read(later, 8)
    assert [*first, *seen[:4]] == read(build(staged(known, stages, 10)), 10) and of("math", seen[4:]) == [8] * 4


def test_a_stream_that_is_gone_is_named(build: Any, data: dict[str, Any]) -> None:
    loader = build(staged(data))
    read(loader, 8)
    fewer = {**data, "streams": {name: data["streams"][name] for name in ("web", "code")}}
    config = staged(fewer, [*STAGES[:1], {"proportion": {"code": 1}}])
    with pytest.raises(ConfigError, match=r"streams\.2\.\S+: \S+ -> \(absent\)"):
        build(config).load_state_dict(loader.state_dict())
    config.mosaic.allow_data_change = True
    changed = build(config)
    changed.load_state_dict(loader.state_dict())
    assert of("code", read(changed, 2)) == [8, 8]


def test_a_run_without_stages_goes_on_in_them(
    build: Any, data: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    mixed = {
        name: stream | {"proportion": part}
        for (name, stream), part in zip(data["streams"].items(), (5, 2, 1), strict=True)
    }
    loader = build(job({**data, "streams": mixed, "epoch_size": 100}))
    first = read(loader, 14)
    state = loader.state_dict()
    older = json.loads(state[STATE_KEY])
    del older["batch"], older["origin"]
    resumed = build(staged(data))
    resumed.load_state_dict(state)
    seen = read(resumed, 9)
    assert sum(of("web", seen[:5])) == 32 and (resumed.progress.batch, resumed.progress.samples) == (23, 23 * 8)
    again = build(staged(data), 2, 0)
    again.load_state_dict(resumed.state_dict())
    other = build(staged(data))
    other.load_state_dict({STATE_KEY: json.dumps(older)})
    assert read(other, 9) == seen
    plan = again.plan
    assert plan.origin.batch == 14 and plan.origin.epoch == 2  # a pass that no epoch of the run before has read
    begin = dict(zip(plan.names, resumed.data.dataset.sample_offset_per_stream.tolist(), strict=True))
    for batch, expected in ((0, first[0]), (13, first[13]), (14, seen[0]), (22, seen[8])):
        ids = plan.samples(batch)
        named = [plan.names[stream] for stream in plan.stream_of(ids)]
        assert (
            sorted(BEGINS[name] + one - begin[name] for name, one in zip(named, ids.tolist(), strict=True)) == expected
        )
    assert plan.place(13) == (1, 8) and plan.place(14) == (2, 0) and plan.passes(14).tolist() == [0, 0, 0]


def test_a_plan_that_reads_a_stream_too_often_is_refused_with_the_step(build: Any, data: dict[str, Any]) -> None:
    def limited(most: float, steps: int = 40) -> Any:
        return staged(data, [*STAGES[:2], {**STAGES[2], "max_epochs": {"math": most}}], steps)

    loader = build(limited(7.5))
    read(loader, 30)
    plan = loader.plan
    times = [plan.passes(step)[2] for step in range(41)]
    assert times[40] < 7.5
    over = next(step for step in range(41) if times[step] > 4)
    message = f"stage 3.max_epochs.math: 4, but step {over} begins to read it more often, and by step 40 .* 7.* times"
    with pytest.raises(ConfigError, match=message):
        build(limited(4))
    build(limited(4, over - 1))  # a run that ends before


def test_stages_must_last_as_long_as_the_run(build: Any, data: dict[str, Any]) -> None:
    half = {"duration": "0.5dur", "proportion": {"web": 1}}
    with pytest.raises(
        ConfigError, match="the stages end after step 20, the run after step 40; leave out the duration"
    ):
        build(staged(data, [half]))
    build(staged(data, [half, half]))
    build(staged(data, [half, {**half, "duration": "1e12tok"}]))  # a run may end before its last stages
    with pytest.raises(ConfigError, match=r"stage 1.duration: '1tok' is 0.0078 steps, less than half of one"):
        build(staged(data, [{**half, "duration": "1tok"}, half]))


def test_batches_are_passed_over_within_stages(build: Any, data: dict[str, Any]) -> None:
    """Three streams in a ramp: later steps take later batches, resumed at another size, and steps are told as steps."""
    whole = read(build(staged(data)), 40)
    first, state = read_by_all(build, staged(data), {}, 2, 6)
    later = staged(data, skip_batches=["8-11", "17"], steps=35)
    seen, state = read_by_all(build, later, state, 4, 9)
    rest, state = read_by_all(build, staged(data, steps=35), state, 1, 20)
    assert [*first, *seen, *rest] == [step for number, step in enumerate(whole, 1) if number not in {8, 9, 10, 11, 17}]
    loader = build(later)
    told = dict(loader.reads(35))
    assert told["stage 2"] == "from step 6 on 6 steps, a ramp to web 0.5, code 0.4, math 0.1"
    assert told["stage 3"].startswith("from step 12 on to the end") and told["passes"].endswith("by step 35")
    with pytest.raises(ConfigError, match="the stages end after step 11, the run after step 35"):
        build(staged(data, STAGES[:2], skip_batches=["8-11"], steps=35))
    with pytest.raises(ConfigError, match=r"stage 3.max_epochs.math: 2, but step .* and by step 35 it is read"):
        build(staged(data, [*STAGES[:2], {**STAGES[2], "max_epochs": {"math": 2}}], 35, skip_batches=["8-11", "17"]))


def test_what_was_read_before_stages_were_changed_knowingly_is_not_told(build: Any, data: dict[str, Any]) -> None:
    loader = build(staged(data))
    read(loader, 8)
    other = [{"proportion": {"web": 1, "math": 1}}]
    changed = build(staged(data, other, allow_data_change=True))
    changed.load_state_dict(loader.state_dict())
    assert sum(of("math", read(changed, 3))) == 12
    again = build(staged(data, other))
    again.load_state_dict(changed.state_dict())
    ids = again.plan.samples(8)
    assert len(ids) == 8 and again.progress.batch == 11
    for batch in (0, 7):
        with pytest.raises(ConfigError, match=f"batch {batch} was read before the data were changed, at batch 8"):
            again.plan.samples(batch)
        with pytest.raises(ConfigError, match="read before the data were changed"):
            again.plan.place(batch)


def test_schedule_s_curves_are_of_the_steps_that_are_taken(build: Any, data: dict[str, Any], tmp_path: Path) -> None:
    """The last step has batch 26: as many samples of each stream as the loader reads, without those passed over."""
    path, config = tmp_path / "data.yaml", staged(data, steps=20, skip_batches=["8-12", "17"])
    loader = {"name": "text", "dataset": {**data, "max_seq_len": 17}}
    path.write_text(json.dumps({"mosaic_stages": STAGES, "mosaic_dataloader": loader}))
    names, panels = stream_panels(config, str(path), 8, np.arange(20))
    curves, seen = dict(panels), read(build(config), 20)
    for name, share, tokens, passes in zip(
        names, curves["share of a step"], curves["tokens"], curves["passes"], strict=True
    ):
        assert np.allclose(share * 8, of(name, seen))
        assert np.allclose(tokens, 16 * np.cumsum([0, *of(name, seen)])[:-1])
        assert np.isclose(passes[19], build(config).plan.passes(25)[names.index(name)])


GOOD = """
mosaic_stages:
- duration: 500ba
  proportion: {web: 0.8, code: 0.2}
- duration: 1e6tok
  ramp: true
  proportion: {web: 1, code: 1}
  max_epochs: {code: 4}
- proportion: {code: 1}
mosaic_dataloader:
  name: text
  dataset:
    shuffle: true
    streams:
      web: {local: /data/web}
      code: {local: /data/code}
"""
MISTAKES = [
    ("web: 0.8", "wbe: 0.8", "stage 1.proportion: there is no stream 'wbe'. Did you mean 'web'?"),
    ("web: 0.8", "web: -0.8", "stage 1.proportion.web: expected a number of at least 0, found -0.8"),
    ("web: 0.8", "web: .nan", "stage 1.proportion.web: expected a number of at least 0, found nan"),
    ("web: 0.8", "web: true", "stage 1.proportion.web: expected a number of at least 0, found True"),
    ("{web: 0.8, code: 0.2}", "{web: 0, code: 0}", "stage 1.proportion: all are 0"),
    ("{web: 0.8, code: 0.2}", "{}", "stage 1.proportion: expected a table of streams, e.g. { web = 1 }, found {}"),
    ("  proportion: {web: 0.8, code: 0.2}\n", "", "stage 1.proportion: expected a table of streams"),
    (
        "  proportion: {web: 0.8",
        "  proprtion: {web: 0.8",
        "stage 1: unknown key 'proprtion'. Did you mean 'proportion'?",
    ),
    ("500ba", "500", "stage 1.duration: 500 is no length of a stage: a number above 0 with a unit of tok, sp, ba, dur"),
    ("500ba", "2ep", "stage 1.duration: '2ep' is no length of a stage"),
    ("500ba", "0ba", "stage 1.duration: '0ba' is no length of a stage"),
    ("500ba", "-5ba", "stage 1.duration: '-5ba' is no length of a stage"),
    ("500ba", "10sec", "stage 1.duration: '10sec' is no length of a stage"),
    ("- duration: 500ba\n ", "-", "stage 1.duration: missing; only the last stage may go on to the end"),
    ("duration: 1e6tok\n  ", "", "stage 2.duration: missing; a ramp must have an end"),
    ("duration: 500ba", "duration: 500ba\n  ramp: true", "stage 1.ramp: there is no stage before it to ramp from"),
    ("ramp: true", "ramp: 1", "stage 2.ramp: expected true or false, found 1"),
    ("{code: 4}", "{code: 0}", "stage 2.max_epochs.code: expected a number above 0, found 0"),
    ("{code: 4}", "{cod: 4}", "stage 2.max_epochs: there is no stream 'cod'. Did you mean 'code'?"),
    (
        "{local: /data/web}",
        "{local: /data/web, repeat: 2}",
        "say how much of stream 'web' is read; leave out its repeat",
    ),
    (
        "{local: /data/web}\n      code: {local: /data/code}",
        "{local: /data/web, proportion: 0.8}\n      code: {local: /data/code, proportion: 0.2}",
        "say how much of the streams 'web', 'code' is read; leave out their proportion",
    ),
    (
        "shuffle: true",
        "epoch_size: 10",
        "mosaic_stages: a run in stages has no epochs of its own; leave out epoch_size",
    ),
    ("shuffle: true", "batching_method: stratified", "leave out batching_method = 'stratified'"),
    ("mosaic_stages:", "mosaic_stage:", "unknown table 'mosaic_stage'. Did you mean 'mosaic_stages'?"),
    (
        GOOD[: GOOD.index("mosaic_dataloader")],
        "mosaic_stages: {duration: 5ba}\n",
        "expected a list of tables, one a stage",
    ),
]


FOUNDRY = GOOD.replace("mosaic_dataloader:", "max_duration: 500ba\ntrain_loader:")
"""The same in llm-foundry's own training YAML, whose other tables are not read."""


@pytest.mark.parametrize("good", [GOOD, FOUNDRY], ids=["a data config", "llm-foundry's"])
@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=[mistake[2] for mistake in MISTAKES])
def test_each_mistake_in_a_stage_is_one_message(good: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    old = old if good == GOOD else old.replace("mosaic_dataloader", "max_duration")
    assert old in good
    path = tmp_path / "data.yaml"
    path.write_text(good)
    assert len(load_data_config(path).stages) == 3
    path.write_text(good.replace(old, new, 1))
    with pytest.raises(ConfigError) as raised:
        load_data_config(path)
    assert message in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_numbers_by_step_are_made_only_as_far_as_they_are_asked_for(build: Any, data: dict[str, Any]) -> None:
    loader = build(staged(data, [{"proportion": {"web": 5, "code": 3, "math": 1}}], 10**6))
    assert len(loader.plan.read(0, 100)) == 101
    assert [len(piece) for piece in loader.plan.stages[0]._held.values()] == [PIECE + 1]
