"""What a job's nodes will read and keep, foreseen by `inspect`, against what their ranks' batches need."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from mds_data import ASSETS, job, write_mds
from mosaic_photon.cli import main
from mosaic_photon.dataloader import build_mosaic_dataloader
from mosaic_photon.dataloader.order.deal import nodes_of_ranks, places_of_mesh, rank_batches, seats

JOB = f"""
[model]
name = "llama3_mosaic"
flavor = "debugmodel"
hf_assets_path = "{ASSETS}"
[training]
steps = 30
seq_len = 16
local_batch_size = 2
global_batch_size = 16
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,400 samples in 134 compressed shards."""
    return write_mds(tmp_path_factory.mktemp("mds"), 2400, compression="zstd")


def data_config(folder: Path, shards: Path, **settings: Any) -> str:
    values = {"remote": str(shards), "local": str(folder / "cache"), "shuffle": True, **settings}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / "data.toml"
    path.write_text("[mosaic_dataloader]\nname = 'text'\n[mosaic_dataloader.dataset]\n" + "\n".join(lines))
    return str(path)


def inspect(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    capsys.readouterr()
    assert main(["inspect", *map(str, words)]) == 0
    return capsys.readouterr().out


def needed(shards: Path, tmp_path: Path, nodes: int, per_node: int, **settings: Any) -> list[set[int]]:
    """The shards of each node's batches of the first epoch."""
    config = job({"remote": str(shards), "local": str(tmp_path / "cache"), "shuffle": True, **settings}, batch=16)
    ranks = nodes * per_node
    loader = build_mosaic_dataloader(ranks, 0, HuggingFaceTokenizer(str(ASSETS)), config)
    turns = seats(nodes_of_ranks(places_of_mesh(ranks, per_node, ranks, 1)))
    order, found = loader.orders.get(0), [set() for _ in range(nodes)]
    for rank in range(ranks):
        layout = dataclasses.replace(loader.layout, dp_rank=rank, seats=turns)
        shard_ids, _ = loader.data.dataset.locate(rank_batches(order, 0, layout).reshape(-1))
        found[rank // per_node] |= set(shard_ids.tolist())
    loader.close()
    return found


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 2), (2, 2), (4, 2), (2, 1)])
def test_each_node_reads_and_keeps_what_was_foreseen(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], nodes: int, per_node: int
) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    settings = {"num_canonical_nodes": 4}
    config = data_config(tmp_path, shards, **settings)
    words = [config, "--job", tmp_path / "job.toml", "--nnodes", nodes, "--nproc-per-node", per_node]
    found = json.loads(inspect(capsys, *words, "--json"))["job"]
    index = json.loads((shards / "index.json").read_text())["shards"]
    stored, raw = (np.array([shard[key]["bytes"] for shard in index]) for key in ("zip_data", "raw_data"))
    assert found["world_size"] == nodes * per_node and found["shards"] == 134 and len(found["nodes"]) == nodes
    for node, ids in zip(found["nodes"], needed(shards, tmp_path, nodes, per_node, **settings), strict=True):
        assert len(ids) <= node["shards"] <= len(ids) + 2  # of an epoch's tail, which is not trained on
        assert node["shards"] <= 134 / nodes + 4
        assert abs(node["bytes"] - stored[sorted(ids)].sum()) <= 2 * stored.max()
        assert abs(node["kept_bytes"] - raw[sorted(ids)].sum()) <= 2 * raw.max()
    assert found["download_bytes"] == sum(node["bytes"] for node in found["nodes"])
    assert found["order_bytes"] == 2400 * 2 and 134 * 40 < found["index_bytes"] < 134 * 400
    assert found["warning"] is None


def test_a_node_that_would_read_everything_is_warned_of(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    nodes = ["--job", tmp_path / "job.toml", "--nnodes", 4, "--nproc-per-node", 2]
    printed = inspect(capsys, data_config(tmp_path, shards, num_canonical_nodes=1), *nodes)
    assert "4 node(s): in an epoch each reads 134 of 134 shards" in printed
    assert "warning a node reads 100% of the shards: num_canonical_nodes is 1; with a multiple of 4" in printed
    printed = inspect(capsys, data_config(tmp_path, shards, num_canonical_nodes=8), *nodes)
    assert "warning" not in printed and "each reads 3" in printed
    largest = max(path.stat().st_size for path in shards.glob("*.mds*"))
    limited = data_config(tmp_path, shards, num_canonical_nodes=8, cache_limit=largest * 20)
    found = json.loads(inspect(capsys, limited, *nodes, "--json"))["job"]
    assert all(node["kept_bytes"] == largest * 20 for node in found["nodes"])


def test_what_nodes_read_of_stages_is_told_of_the_steps_in_which_the_streams_are_read_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    streams = {name: {"local": str(write_mds(tmp_path / name, 240))} for name in ("web", "code")}
    stages = [
        {"duration": "4ba", "proportion": {"web": 3, "code": 1}},
        {"duration": "30ba", "ramp": True, "proportion": {"web": 1, "code": 2}},
    ]
    dataset = {"shuffle": True, "num_canonical_nodes": 4, "streams": streams}
    config = tmp_path / "data.yaml"
    config.write_text(json.dumps({"mosaic_dataloader": {"name": "text", "dataset": dataset}, "mosaic_stages": stages}))
    words = [config, "--job", tmp_path / "job.toml", "--nnodes", 2, "--nproc-per-node", 2]
    found = json.loads(inspect(capsys, *words, "--json"))["job"]
    assert found["nodes_in_steps"] == 30 and found["order_bytes"] == 240 + 240 * 2  # one id is a byte up to 255
    settings = job(dataset, stages=stages)
    settings.training.local_batch_size, settings.training.global_batch_size = 2, 16
    settings.training.seq_len, settings.training.steps = 16, 30
    loader = build_mosaic_dataloader(4, 0, HuggingFaceTokenizer(str(ASSETS)), settings)
    turns, read = seats(nodes_of_ranks(places_of_mesh(4, 2, 4, 1))), [set(), set()]
    for rank in range(4):
        layout = dataclasses.replace(loader.layout, dp_rank=rank, seats=turns)
        for ids in loader.plan.blocks(0, 30, layout):
            read[rank // 2] |= set(loader.data.dataset.locate(ids)[0].ravel().tolist())
    loader.close()
    assert [node["shards"] for node in found["nodes"]] == [len(ids) for ids in read]
    assert "2 node(s): in its first 30 steps each reads" in inspect(capsys, *words)


def test_data_without_a_remote_is_neither_downloaded_nor_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    here = write_mds(tmp_path / "here", 400)
    config = tmp_path / "data.toml"
    config.write_text(f"[mosaic_dataloader]\nname = 'text'\n[mosaic_dataloader.dataset]\nlocal = '{here}'\n")
    found = json.loads(inspect(capsys, config, "--job", tmp_path / "job.toml", "--nnodes", 2, "--json"))["job"]
    assert found["download_bytes"] == 0 and {node["kept_bytes"] for node in found["nodes"]} == {0}
    assert all(node["bytes"] > 0 for node in found["nodes"]) and found["world_size"] == 2


def test_compressed_data_without_a_remote_is_kept_unpacked_and_not_downloaded(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.toml").write_text(f"{JOB}[mosaic]\nnode_folder = '{tmp_path / 'node'}'\n")
    config = tmp_path / "data.toml"
    config.write_text(f"[mosaic_dataloader]\nname = 'text'\n[mosaic_dataloader.dataset]\nlocal = '{shards}'\n")
    found = json.loads(inspect(capsys, config, "--job", tmp_path / "job.toml", "--nnodes", 2, "--json"))["job"]
    assert found["download_bytes"] == 0 and all(node["kept_bytes"] > node["bytes"] for node in found["nodes"])


def test_nodes_are_those_of_a_job(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["--nnodes", "2"], "name it with --job"), (["--nnodes", "0"], "at least 1")):
        code = main(["inspect", data_config(tmp_path, shards), *words])
        assert code and message in capsys.readouterr().err
