"""Loaders that go through llm-foundry: finetuning data and text tokenised on the fly, with and without workers."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from streaming import MDSWriter, StreamingDataset
from transformers import AutoTokenizer

from mds_data import ASSETS, SEQ_LEN, job
from mosaic_photon.dataloader import build_mosaic_eval_dataloader
from mosaic_photon.dataloader.shards.index import DataError
from mosaic_photon.errors import ConfigError

WIDE = 64


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 prompts and responses."""
    out = tmp_path_factory.mktemp("pairs")
    with MDSWriter(out=str(out), columns={"prompt": "str", "response": "str"}, size_limit=500) as mds:
        for i in range(48):
            mds.write({"prompt": f"add {i} and 1:", "response": f"it is {i + 1}." + "!" * (i % 5)})
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("text")
    with MDSWriter(out=str(out), columns={"text": "str"}, size_limit=500) as mds:
        for i in range(48):
            mds.write({"text": f"line {i} " * 8})
    return out


def finetuning(pairs: Path, seq_len: int = WIDE, **loader: Any) -> dict[str, Any]:
    dataset = {
        "remote": str(pairs),
        "local": f"{pairs}_cache",
        "max_seq_len": seq_len,
        "decoder_only_format": True,
        "shuffle": True,
    }
    return {"name": "finetuning", "dataset": dataset, "drop_last": True, "num_workers": 0, **loader}


def test_finetuning_batches_equal_llm_foundrys(pairs: Path, tmp_path: Path, build: Any) -> None:
    from llmfoundry.data.dataloader import build_dataloader

    ours = build(job(loader=finetuning(pairs), local=4, batch=4, seq_len=WIDE))
    config = copy.deepcopy(finetuning(pairs, prefetch_factor=None, persistent_workers=False, pin_memory=False))
    config["dataset"]["local"] = str(tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(ASSETS, padding_side="right")
    theirs = build_dataloader(config, tokenizer, 4).dataloader
    for batch, (inputs, labels) in zip(theirs, ours, strict=False):
        assert torch.equal(inputs["input"], batch["input_ids"])
        assert torch.equal(labels[:, :-1], batch["labels"][:, 1:]) and (labels[:, -1] == -100).all()
        assert set(inputs) == {"input"}


@pytest.mark.parametrize("kind", ["finetuning", "text"])
def test_workers_change_nothing_and_the_state_counts_what_was_handed_over(
    pairs: Path, text: Path, build: Any, kind: str
) -> None:
    def config(workers: int) -> Any:
        loader = finetuning(pairs) if kind == "finetuning" else {**finetuning(pairs), "name": "text"}
        if kind == "text":
            loader["dataset"] = {"local": str(text), "shuffle": True}
        return job(loader=loader | {"num_workers": workers}, local=2, batch=4, seq_len=WIDE)

    plain, parallel = build(config(0)), build(config(2))
    batches, others = iter(plain), iter(parallel)
    for step in range(30):  # over the end of the first epoch of 24 micro-batches
        (inputs, labels), (other_inputs, other_labels) = next(batches), next(others)
        assert torch.equal(inputs["input"], other_inputs["input"]) and torch.equal(labels, other_labels)
        assert plain.state_dict() == parallel.state_dict(), step
    assert plain.progress.epoch == 1
    resumed = build(config(1))
    resumed.load_state_dict(plain.state_dict())
    assert torch.equal(next(iter(resumed))[0]["input"], next(batches)[0]["input"])


def test_validation_of_text_fills_up_ranks_without_samples(text: Path, tokenizer: Any) -> None:
    loader = {"name": "text", "dataset": {"local": str(text)}, "drop_last": False, "num_workers": 0}
    config = job(eval_loader=loader, local=5)
    ranks = [list(build_mosaic_eval_dataloader(11, rank, tokenizer, config)) for rank in range(11)]
    assert {len(batches) for batches in ranks} == {1}
    assert sum(int((labels != -100).any(1).sum()) for ((_, labels),) in ranks) == 48
    whole = [list(build_mosaic_eval_dataloader(64, rank, tokenizer, config)) for rank in (0, 63)]
    assert (whole[0][0][1] != -100).any() and (whole[1][0][1] == -100).all()


def test_a_worker_that_is_killed_ends_the_job(text: Path, build: Any) -> None:
    loader = {"name": "text", "dataset": {"local": str(text)}, "drop_last": True, "num_workers": 2}
    batches = iter(build(job(loader=loader, seq_len=SEQ_LEN)))
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"DataLoader worker (\(pid|ended)"):
        for _ in range(100):
            next(batches)


def test_closing_ends_the_workers(text: Path, build: Any) -> None:
    loader = build(job(loader={"name": "text", "dataset": {"local": str(text)}, "drop_last": True, "num_workers": 2}))
    next(iter(loader))
    workers = [psutil.Process(worker.pid) for worker in multiprocessing.active_children()]
    assert len(workers) == 2
    loader.close()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_spawned_workers_can_be_sent_the_dataset(text: Path, build: Any) -> None:
    samples = build(job({"local": str(text)})).data.make_batch
    assert pickle.loads(pickle.dumps(samples))[3] == samples[3]


SPAWN = """
import json, multiprocessing, sys
sys.path.insert(0, {tests!r})
from mds_data import ASSETS, job
from mosaic_photon.dataloader import build_mosaic_dataloader
from torchtitan.components.tokenizer import HuggingFaceTokenizer

def batches(config, workers):
    loader = job(loader=config | {{"num_workers": workers}}, local=4, batch=4, seq_len={seq_len})
    loader = build_mosaic_dataloader(1, 0, HuggingFaceTokenizer(str(ASSETS)), loader)
    made = [batch[0]["input"].tolist() for batch, _ in zip(loader, range(14))]
    loader.close()
    return made

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    for config in json.loads(sys.argv[1]):
        assert batches(config, 1) == batches(config, 0), config["name"]
"""


@pytest.mark.slow
def test_spawned_workers_make_the_same_batches(pairs: Path, text: Path, tmp_path: Path) -> None:
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN.format(tests=str(Path(__file__).parent.parent), seq_len=WIDE))
    of_text = {"name": "text", "dataset": {"local": str(text), "shuffle": True}, "drop_last": True}
    command = [sys.executable, str(script), json.dumps([finetuning(pairs), of_text])]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_an_error_in_a_worker_has_the_message_alone(text: Path, tmp_path: Path, build: Any) -> None:
    folder = Path(shutil.copytree(text, tmp_path / "text"))
    for shard in folder.glob("shard.*.mds"):
        shard.write_bytes(b"\xff" * shard.stat().st_size)
    loader = build(job(loader={"name": "text", "dataset": {"local": str(folder)}, "drop_last": True, "num_workers": 2}))
    with pytest.raises(DataError, match=rf"^{folder}/shard\.00000\.mds: has a damaged header[^\n]*$"):
        next(iter(loader))


def test_llm_foundry_and_streaming_are_left_as_they_were(pairs: Path, build: Any) -> None:
    refused = finetuning(pairs)
    del refused["dataset"]["decoder_only_format"]
    original = StreamingDataset.__init__
    build(job(loader=finetuning(pairs), seq_len=WIDE))
    assert StreamingDataset.__init__ is original
    with pytest.raises(ConfigError):
        build(job(loader=refused, seq_len=WIDE))
    assert StreamingDataset.__init__ is original


def test_what_llm_foundry_refuses_is_a_config_error(pairs: Path, build: Any) -> None:
    loader = finetuning(pairs)
    del loader["dataset"]["decoder_only_format"]
    with pytest.raises(ConfigError, match="refused by llm-foundry: decoder_only_format must be set"):
        build(job(loader=loader, seq_len=WIDE))


def test_packing_is_refused(pairs: Path, build: Any) -> None:
    loader = finetuning(pairs)
    loader["dataset"]["packing_ratio"] = 2.0
    with pytest.raises(ConfigError, match=r"packing_ratio: 2\.0 is refused: it packs sequences"):
        build(job(loader=loader, seq_len=WIDE))
