"""Batches equal llm-foundry's own loader, bit for bit, over the options of its text loader."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming import MDSWriter

from mds_data import ASSETS, SEQ_LEN, job, text_loader, write_mds

TWO = {"a": {"local": "a"}, "b": {"local": "b"}}
OPTIONS: list[dict[str, Any]] = [
    {"local": "a"},
    {"local": "a", "max_seq_len": SEQ_LEN},
    {"local": "a", "shuffle": True},
    *({"local": "a", "shuffle": True, "shuffle_algo": a} for a in ("py1br", "py1s", "py2s", "naive")),
    {"local": "a", "shuffle": True, "shuffle_seed": 3, "shuffle_block_size": 40, "num_canonical_nodes": 3},
    {"local": "a", "num_canonical_nodes": 4, "partition_algo": "orig"},
    {"local": "a", "shuffle": True, "epoch_size": 150, "sampling_method": "fixed"},
    {"local": "a", "shuffle": True, "epoch_size": "0.3k", "sampling_granularity": 5},
    {"streams": TWO, "shuffle": True},
    {"streams": {"a": {"local": "a", "proportion": 0.7}, "b": {"local": "b", "proportion": 0.3}}, "epoch_size": 100},
    {"streams": {"a": {"local": "a", "repeat": 1.5}, "b": {"local": "b", "choose": 20}}, "shuffle": True},
    *({"streams": TWO, "batching_method": m} for m in ("stratified", "per_stream", "device_per_stream")),
    *({"streams": TWO, "batching_method": m, "shuffle": True} for m in ("stratified", "per_stream")),
    *({"local": kind} for kind in ("int16", "int64", "uint16", "bytes", "dynamic", "columns", "ragged", "zstd")),
    {"local": "ragged", "max_seq_len": SEQ_LEN},
    {"local": "text", "shuffle": True},
    {"local": "text", "max_seq_len": SEQ_LEN},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streams")
    write_mds(root / "a", 107)
    write_mds(root / "b", 61, start=500)
    for dtype in ("int16", "int64", "uint16"):
        write_mds(root / dtype, 40, encoding=f"ndarray:{dtype}:17")
    write_mds(root / "bytes", 40, encoding="bytes")
    write_mds(root / "dynamic", 40, encoding="ndarray:int32")
    write_mds(root / "zstd", 40, compression="zstd:3")
    rng = np.random.default_rng(0)
    columns = {"source": "str", "tokens": "ndarray:int32:17", "weight": "int"}
    with MDSWriter(out=str(root / "columns"), columns=columns) as mds:
        for i in range(40):
            mds.write({"source": "x" * i, "tokens": np.arange(17, dtype=np.int32) + i, "weight": i})
    with MDSWriter(out=str(root / "ragged"), columns={"tokens": "ndarray:int32"}) as mds:
        for _ in range(40):
            mds.write({"tokens": rng.integers(0, 2000, rng.integers(3, 30)).astype(np.int32)})
    with MDSWriter(out=str(root / "text"), columns={"text": "str"}) as mds:
        for i in range(40):
            mds.write({"text": f"def f{i}(x): return x + {i}" * (i % 3 + 1)})
    return root


def located(dataset: dict[str, Any], root: Path) -> dict[str, Any]:
    dataset = copy.deepcopy(dataset)
    for part in [dataset, *dataset.get("streams", {}).values()]:
        if "local" in part:
            part["local"] = str(root / part["local"])
    return dataset


def foundry_loader(dataset: dict[str, Any], batch: int) -> Iterable[dict[str, torch.Tensor]]:
    """llm-foundry's own loader; each iteration is an epoch."""
    from llmfoundry.data.dataloader import build_dataloader
    from transformers import AutoTokenizer

    dataset = {"max_seq_len": SEQ_LEN + 1, **dataset}
    config = text_loader(dataset, prefetch_factor=None, persistent_workers=False, pin_memory=False)
    return build_dataloader(config, AutoTokenizer.from_pretrained(ASSETS), batch).dataloader


def expected(batch: dict[str, torch.Tensor], max_seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """TorchTitan's input and shifted labels of llm-foundry's batch, filled up where it is narrower."""
    missing = max_seq_len - batch["input_ids"].shape[1]
    labels = torch.nn.functional.pad(batch["labels"], (0, missing + 1), value=-100)[:, 1 : SEQ_LEN + 1]
    return torch.nn.functional.pad(batch["input_ids"], (0, missing), value=2)[:, :SEQ_LEN], labels


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.items()))[:90])
def test_batches_equal_llm_foundrys_over_two_epochs(
    options: dict[str, Any], data: Path, tmp_path: Path, build: Any
) -> None:
    ours = build(job(located(options, data), local=4, batch=4))
    theirs = tmp_path / "theirs"  # a name of its own: Streaming refuses a folder that another loader has open
    theirs.symlink_to(data)
    foundry = foundry_loader(located(options, theirs), batch=4)
    steps = ours.steps_per_epoch
    assert steps >= 5
    batches = iter(ours)
    for epoch in (1, 2):
        for batch in list(foundry)[:steps]:
            ids, labels = expected(batch, options.get("max_seq_len", SEQ_LEN + 1))
            inputs, our_labels = next(batches)
            assert torch.equal(inputs["input"], ids) and torch.equal(our_labels, labels)
        assert (ours.progress.epoch, ours.progress.samples_in_epoch) == (epoch, 0)
