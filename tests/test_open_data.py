"""Batches without a job are a job's: the same rows in the same order on each rank, from any state; and the mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import jobs
from layouts_jobs import run_plan
from mds_data import ASSETS, SEQ_LEN, flat, numbers, write_mds
from mosaic_photon import ConfigError, open_data
from mosaic_photon.cli import main
from mosaic_photon.dataloader.build import build_mosaic_eval_dataloader
from mosaic_photon.dataloader.open import MosaicData
from mosaic_photon.errors import ConfigError as OurError
from mosaic_photon.job.load import load_job
from reads_callback import read_by, trained_by

BATCH, STEPS = 8, 15
DATA = """
[mosaic_dataloader]
name = "text"
[mosaic_dataloader.dataset]
local = "{data}"
split = "train"
shuffle = true
shuffle_seed = 5
num_canonical_nodes = 4
[mosaic_eval_dataloader]
name = "text"
[mosaic_eval_dataloader.dataset]
local = "{data}"
split = "val"
"""
RANKS = {"1": (1, 1, 4), "2": (2, 1, 2), "4 on 2": (4, 2, 1)}
"""Name -> data-parallel ranks, nodes, samples of a micro-batch; two micro-batches make a step."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """103 samples to train on, an epoch of 13 steps, and 21 to validate on."""
    folder = tmp_path_factory.mktemp("shards")
    write_mds(folder / "train", 103)
    write_mds(folder / "val", 21, start=500)
    (folder / "data.toml").write_text(DATA.format(data=folder))
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Jobs over the end of an epoch, each with a checkpoint at its end."""
    root, plan = tmp_path_factory.mktemp("jobs"), []
    for name, (ranks, nodes, local) in RANKS.items():
        callback = f"\n[callbacks.'reads_callback:Reads']\nfolder = '{root / name}'\nranks_of_node = {ranks // nodes}\n"
        job = jobs.JOB.replace("seq_len = 64", f"seq_len = {SEQ_LEN}").replace(
            "batch_size = 2", f"batch_size = {local}"
        )
        job = job.replace("global_batch_size = 4", f"global_batch_size = {BATCH}") + callback
        arguments = jobs.write_job(root / name, shards, job.replace("steps = 4", f"steps = {STEPS}"), DATA)
        flags = ["--", "--checkpoint.enable", "--checkpoint.interval=1000"]
        plan.append({"name": name, "ranks": ranks, "arguments": [*arguments, *flags], "log": str(root / name / "log")})
    run_plan(plan, root)
    return root


def opened(config: Path, name: str, rank: int, **more: Any) -> MosaicData:
    dp, nodes, local = RANKS[name]
    sizes = {"seq_len": SEQ_LEN, "batch_size": local, "global_batch_size": BATCH, "dp_rank": rank, "dp_world_size": dp}
    return open_data(config, **{**sizes, "nodes": nodes, "tokenizer": ASSETS, **more})


def rows(data: MosaicData, batches: int) -> list[list[list[list[int]]]]:
    return [[inputs.tolist(), labels.tolist()] for inputs, labels in islice(data, batches)]


def samples(data: MosaicData, batches: int) -> list[list[int]]:
    return [numbers(({"input": inputs}, labels)) for inputs, labels in islice(data, batches)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", RANKS)
def test_each_rank_gets_what_the_job_s_rank_trained_on(ran: Path, name: str) -> None:
    for rank in range(RANKS[name][0]):
        read = read_by(ran / name, rank)
        assert len(read) == 2 * STEPS, (ran / name / "log").read_text()
        with opened(ran / name / "data.toml", name, rank) as data:
            assert rows(data, 2 * STEPS) == read
            assert data.steps_per_epoch == 13


@pytest.mark.parametrize("name", RANKS)
def test_trace_lists_what_each_rank_trained_on(ran: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By rank and micro-batch, for every step, over the end of the epoch."""
    ranks, nodes, _ = RANKS[name]
    files = [str(ran / name / file) for file in ("job.toml", "data.toml")]
    layout = [f"--nnodes={nodes}", f"--nproc-per-node={ranks // nodes}"]
    assert main(["trace", *files, f"--step=1-{STEPS}", *layout, "--json"]) == 0
    listed: dict[int, list[list[int]]] = {rank: [[] for _ in range(2 * STEPS)] for rank in range(ranks)}
    for step in json.loads(capsys.readouterr().out):
        for sample in step["samples"]:
            listed[sample["rank"]][2 * (step["step"] - 1) + sample["micro_batch"]].append(sample["sample"])
    for rank in range(ranks):
        assert listed[rank] == trained_by(ran / name, rank)


@pytest.mark.parametrize("name", RANKS)
def test_a_job_s_checkpoint_is_gone_on_from_by_any_ranks(ran: Path, name: str) -> None:
    with opened(ran / "1" / "data.toml", "1", 0) as whole:
        expected = [sorted(flat(samples(whole, 2))) for _ in range(STEPS + 5)][STEPS:]
    everyone = [opened(ran / name / "data.toml", name, rank) for rank in range(RANKS[name][0])]
    for data in everyone:
        state = {"dataloader": data.state_dict()}
        dcp.load(state, checkpoint_id=ran / "2" / f"out/checkpoint/step-{STEPS}", no_dist=True)
        data.load_state_dict(state["dataloader"])
    assert [sorted(flat(flat(samples(data, 2)) for data in everyone)) for _ in range(5)] == expected
    for data in everyone:
        data.close()


def test_a_state_of_after_any_batch_is_exact(shards: Path) -> None:
    """Within a step too, before and after the end of the epoch, whose last step must not be lost."""
    with opened(shards / "data.toml", "2", 1) as data:
        expected, states = [], [data.state_dict()]
        for batch in islice(data, 34):
            expected.append(numbers(({"input": batch[0]}, batch[1])))
            states.append(data.state_dict())
    for number in (0, 1, 6, 25, 26, 27):
        with opened(shards / "data.toml", "2", 1) as again:
            again.load_state_dict(json.loads(json.dumps(states[number])))
            assert samples(again, 34 - number) == expected[number:], number
    with opened(shards / "data.toml", "2", 1) as other:  # a loaded state may be another one than the first, and again
        samples(other, 3)
        other.load_state_dict(states[9])
        assert samples(other, 2) == expected[9:11]
    with (
        opened(shards / "data.toml", "4 on 2", 3, batch_size=2) as wider,
        pytest.raises(ConfigError, match="within a step, after 4 of"),
    ):
        wider.load_state_dict(states[1])


def test_the_eval_set_is_the_job_s_once_in_each_iteration(ran: Path) -> None:
    job = load_job(ran / "2" / "job.toml", ran / "2" / "data.toml", [])
    for rank in range(2):
        theirs = build_mosaic_eval_dataloader(2, rank, None, job)
        expected = [[inputs["input"].tolist(), labels.tolist()] for inputs, labels in theirs]
        with opened(ran / "2" / "data.toml", "2", rank, split="eval", global_batch_size=None, tokenizer=None) as data:
            assert rows(data, 100) == rows(data, 100) == expected
            assert data.steps_per_epoch == len(expected) == 6
            assert data.state_dict() == {}


def test_shards_that_were_appended_stay_out_after_a_state_is_loaded(tmp_path: Path) -> None:
    config = {"mosaic_dataloader": {"name": "text", "dataset": {"local": tmp_path / "data", "shuffle": True}}}
    write_mds(tmp_path / "data", 64)
    with open_data(config, seq_len=SEQ_LEN, batch_size=4) as data:
        samples(data, 5)
        state = data.state_dict()
        expected = samples(data, 30)
    index = json.loads((tmp_path / "data" / "index.json").read_text())
    more = write_mds(tmp_path / "more", 16, start=700)
    added = json.loads((more / "index.json").read_text())["shards"][0]
    added["raw_data"]["basename"] = "shard.00099.mds"
    (more / "shard.00000.mds").rename(tmp_path / "data" / "shard.00099.mds")
    index["shards"].append(added)
    (tmp_path / "data" / "index.json").write_text(json.dumps(index))
    with open_data(config, seq_len=SEQ_LEN, batch_size=4) as data:
        assert data.steps_per_epoch == 20
        data.load_state_dict(state)
        assert (samples(data, 30), data.steps_per_epoch) == (expected, 16)


def test_small_ids_stored_as_bytes_need_no_tokenizer(tmp_path: Path) -> None:
    """Two of one byte side by side may look like one of two; only a vocabulary tells."""
    from streaming import MDSWriter

    with MDSWriter(out=str(tmp_path / "data"), columns={"tokens": "bytes"}) as mds:
        for number in range(8):
            mds.write({"tokens": (torch.arange(33) + number).to(torch.uint8).numpy().tobytes()})
    dataset = {"local": str(tmp_path / "data"), "token_encoding_type": "uint8"}
    with open_data({"train_loader": {"name": "text", "dataset": dataset}}, seq_len=32, batch_size=8) as data:
        inputs, labels = next(iter(data))
    assert torch.equal(inputs, torch.arange(32) + torch.arange(8)[:, None]) and torch.equal(labels, inputs + 1)


def loader_of(folder: Path, **dataset: Any) -> dict[str, Any]:
    return {"mosaic_dataloader": {"name": "text", "dataset": {"local": str(folder), **dataset}}}


SIZES = {"seq_len": SEQ_LEN, "batch_size": 2}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "seq_len of text": ({"seq_len": "16"}, "seq_len = '16' must be a whole number of at least 1."),
    "batch_size 0": ({"batch_size": 0}, "batch_size = 0 must be a whole number of at least 1."),
    "half a step": (
        {"global_batch_size": 7},
        "global_batch_size = 7 does not divide into micro-batches: it must be a multiple of batch_size 2 * ",
    ),
    "rank of others": ({"dp_rank": 1}, "dp_rank = 1 must be one of dp_world_size 1, counted from 0."),
    "nodes without ranks": ({"nodes": 2}, "nodes = 2 must divide dp_world_size 1: each has equally many ranks."),
    "no such split": ({"split": "val"}, "split = 'val' must be one of 'train', 'eval'."),
    "no eval set": ({"split": "eval"}, "data config has no eval loader; add a [mosaic_eval_dataloader] table."),
    "no tokenizer there": ({"tokenizer": "/nowhere"}, "tokenizer: no tokenizer.json in '/nowhere'"),
    "short samples": ({"seq_len": 64}, "its samples have 17 tokens, but seq_len 64 takes 65; set seq_len = 16"),
    "a step of more than there is": ({"batch_size": 200}, "one global batch of 200; lower global_batch_size, or raise"),
    "no file": ({"data": "nowhere.toml"}, "nowhere.toml: cannot read the data config: No such file"),
    "no data": ({"data": None}, "data config: expected the path of a file, or its tables as a dict, found None"),
    "no data in it": ({"data": {"dataset": {}}}, "data config: unknown table 'dataset'."),
    "a wrong key": ({"data": loader_of(Path("x"), shufle=True)}, "unknown key 'shufle'. Did you mean 'shuffle'?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_told_in_the_arguments_terms(shards: Path, name: str) -> None:
    change, message = REFUSED[name]
    arguments = {"data": loader_of(shards / "train"), **SIZES, **change}
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_data(arguments.pop("data"), **arguments)


def test_text_is_refused_without_a_tokenizer_and_a_changed_order_is_told(shards: Path, tmp_path: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(tmp_path / "text"), columns={"text": "str"}) as mds:
        mds.write({"text": "once"})
    with pytest.raises(ConfigError, match="these samples are no token ids; name a tokenizer, a folder with"):
        open_data(loader_of(tmp_path / "text"), **SIZES)
    with open_data(loader_of(shards / "train"), **SIZES) as one:
        state = one.state_dict()
        with open_data(loader_of(shards / "train"), seq_len=SEQ_LEN, batch_size=4) as other:
            with pytest.raises(ConfigError, match=r"Restore the data config \(set global_batch_size = 2\)$"):
                other.load_state_dict(state)
            assert samples(other, 1) == [[0, 1, 2, 3]]  # it is as it was
    assert ConfigError is OurError


ALONE = """
import importlib.abc, json, sys, threading
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torchtitan", "llmfoundry", "composer"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import mosaic_photon
assert "torch" not in sys.modules
import torch
from torch.utils.data import DataLoader
data = mosaic_photon.open_data(json.loads(sys.argv[1]), seq_len=16, batch_size=4)

def main():
    batches, found = iter(data), {"rows": []}
    next(batches)
    for method in ("fork", "spawn"):  # another's workers, while threads of ours read
        theirs = DataLoader(range(4), num_workers=2, multiprocessing_context=method)
        found[method] = [int(one) for one in theirs]
        found["rows"] += [row.tolist() for row in next(batches)[0]]
        try:
            next(iter(DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=method)))
        except mosaic_photon.ConfigError as error:
            found[f"ours by {method}"] = str(error).strip().splitlines()[-1]
    found["in a DataLoader"] = next(iter(DataLoader(data, batch_size=None)))[0].tolist()
    found["group"] = torch.distributed.is_initialized()
    found["modules"] = [name for name in sys.modules if name.startswith("torchtitan")]
    print(json.dumps(found))  # nothing is closed: the process ends all the same

if __name__ == "__main__":
    main()
"""


@pytest.mark.timeout(120)
def test_neither_torchtitan_nor_a_group_is_needed_and_others_workers_do_no_harm(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(ALONE)
    config = json.dumps(loader_of(shards / "train"))
    run = subprocess.run([sys.executable, tmp_path / "alone.py", config], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert [row[1] - 3 for row in found["rows"]] == [4, 5, 6, 7, 8, 9, 10, 11]
    assert [row[1] - 3 for row in found["in a DataLoader"]] == [12, 13, 14, 15]
    assert found["fork"] == found["spawn"] == [0, 1, 2, 3]
    for method in ("fork", "spawn"):
        assert "give the DataLoader num_workers=0" in found[f"ours by {method}"]
    assert found["group"] is False and found["modules"] == []
