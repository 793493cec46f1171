"""Each program of docs/python.md runs as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import jobs
from mosaic_photon import open_data

PAGE = (jobs.ROOT / "docs" / "python.md").read_text()
PROGRAMS = {
    title: code for title, code in re.findall(r"^## (.+?)\n.*?```python\n(.+?)```", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.fixture
def here(tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the programs run in: data.toml, tokenizer, shards."""
    (tmp_path / "tokenizer").symlink_to(jobs.TOKENIZER)
    (tmp_path / "shards").symlink_to(prepared_data)
    (tmp_path / "data.toml").write_text(jobs.DATA.format(data="shards"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)  # of another test's job: the Trainer would take part in it
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(title: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(PROGRAMS[title], title, "exec"), names)
    return names


def rows_from(state: dict[str, str], **sizes: int) -> tuple[torch.Tensor, torch.Tensor]:
    with open_data("data.toml", seq_len=64, tokenizer="tokenizer", **sizes) as data:
        data.load_state_dict(state)
        return next(iter(data))


def test_all_programs_are_run_here() -> None:
    assert list(PROGRAMS) == ["A plain loop", "Hugging Face's Trainer", "What a step reads", "A whole job"]


def test_a_plain_loop(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("A plain loop")
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 10 and losses[-1] < losses[0]
    state = json.loads(torch.load("checkpoint.pt")["data"]["mosaic_dataloader"])
    assert state["samples"] == 40 and names["step"] == 10


@pytest.mark.timeout(120)
def test_hugging_face_s_trainer(here: Path) -> None:
    history = run("Hugging Face's Trainer")["trainer"].state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0] < 8  # ln 2048 = 7.6
    for step in (3, 6):
        state = json.loads((here / f"huggingface/checkpoint-{step}/data.json").read_text())
        progress = json.loads(state["mosaic_dataloader"])
        assert (progress["samples"], progress["samples_in_step"]) == (8 * step, 0)
        assert rows_from(state, batch_size=4, global_batch_size=8)[0].shape == (4, 64)


def test_what_a_step_reads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("What a step reads")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16 == len(set(lines))
    assert lines[0].startswith("rank 0, micro-batch 0: 64 labels of '") and lines[-1].startswith(
        "rank 1, micro-batch 1"
    )


@pytest.mark.timeout(120)
def test_a_whole_job(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("A whole job")
    lines = [line.split() for line in capfd.readouterr().out.splitlines() if re.match(r"0\.00\d \d", line)]
    assert [lr for lr, _ in lines] == ["0.001", "0.003"]
    assert float(lines[1][1]) < float(lines[0][1])
