"""Wrong jobs end in words: a thousand seeded mutations of the sample configs end in one message, or train.

Never in a traceback, never in a hang. A seed that once failed stays in FOUND.
"""

from __future__ import annotations

import faulthandler
import re
import sys
import tomllib
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import jobs
from mutations import mutated, to_toml

CONFIGS = jobs.ROOT / "examples" / "mosaic_photon" / "configs"
SECONDS = 120
Sample = tuple[dict[str, Any], dict[str, Any], str]
FOUND: tuple[int, ...] = (81, 517)
"""Seeds that once ended in a traceback, a hang or no message."""


@pytest.fixture(scope="module")
def samples(prepared_data: Path) -> list[Sample]:
    """The sample jobs, small enough for a run in a second, each with the sample data config and its file's ending."""
    data = tomllib.loads((CONFIGS / "mosaic_dataloader.toml").read_text())
    for loader in data.values():
        loader["dataset"]["local"] = str(prepared_data)
    found = []
    for name, sizes in (
        ("mosaic_job", {"dim": 64, "n_layers": 2, "n_heads": 4}),
        ("mpt_mup_job", {"d_model": 64, "n_layers": 2, "n_heads": 4, "tie_word_embeddings": False}),
    ):
        job = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
        job["model"] |= {"overrides": sizes, "hf_assets_path": str(jobs.TOKENIZER)}
        job["training"] |= {"steps": 2, "local_batch_size": 2, "seq_len": 64, "global_batch_size": 4}
        job["validation"] |= {"local_batch_size": 2, "seq_len": 64, "freq": 2, "steps": 1}
        job["lr_scheduler"] |= (
            {"kwargs": {"t_warmup": "1ba", "t_cooldown": "1ba"}} if "name" in job["lr_scheduler"] else {}
        )
        found += [(job, data, "toml"), (job, _as_foundry(data), "yaml")]
    return found


def _as_foundry(data: dict[str, Any]) -> dict[str, Any]:
    return {"train_loader": data["mosaic_dataloader"], "eval_loader": data["mosaic_eval_dataloader"]}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Paths that are relative, or of a home, are the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def write(folder: Path, sample: Sample, seed: int) -> tuple[list[str], str]:
    """Write the seed's configs; returns the command line's arguments, and what was mutated."""
    job, data, what = mutated(sample[0], sample[1], seed)
    if isinstance(job.get("job"), dict) and job["job"].get("dump_folder") == sample[0]["job"]["dump_folder"]:
        job["job"]["dump_folder"] = str(folder / "out")
    paths = folder / "job.toml", folder / f"data.{sample[2]}"
    folder.mkdir()
    paths[0].write_text(to_toml(job))
    paths[1].write_text(to_toml(data) if sample[2] == "toml" else yaml.safe_dump(data))
    return ["--config", str(paths[0]), "--mosaic-config", str(paths[1])], what


def wrong_end(code: int, printed: str) -> bool:
    """Neither a run nor one message."""
    one_message = code == 1 and printed.count("error: ") == 1
    return "Traceback" in printed or not (code == 0 or one_message)


def failures(seeds: Iterable[int], samples: list[Sample], folder: Path, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Run the job of each seed in this process; returns what went wrong. A hang ends the process with all stacks."""
    found = []
    for seed in seeds:
        arguments, what = write(folder / str(seed), samples[seed % len(samples)], seed)
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
        code, error = -1, ""
        try:
            code = jobs.run_here(arguments, "--training.steps=2")
        except BaseException as raised:
            error = "".join(traceback.format_exception(raised))
        faulthandler.cancel_dump_traceback_later()
        torch.use_deterministic_algorithms(False)  # [debug] deterministic stays on in a process
        printed = "".join(capfd.readouterr()) + error
        if wrong_end(code, printed):
            found.append(f"seed {seed} ({what}): exit {code}\n{printed[-3000:]}")
    return found


def test_seeds_that_once_failed(samples: list[Sample], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not failures(FOUND, samples, tmp_path, capfd)


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(100, 1000, 100))]
)
def test_a_hundred_mutations_end_in_words_or_train(
    first: int, samples: list[Sample], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = failures(range(first, first + 100), samples, tmp_path, capfd)
    assert not found, "\n\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 1000, 34))
def test_under_torchrun(seed: int, samples: list[Sample], tmp_path: Path) -> None:
    """Two ranks say it once, and end; what torchrun tells of their exit comes after it."""
    arguments, what = write(tmp_path / "job", samples[seed % len(samples)], seed)
    process = jobs.start(arguments, "--training.steps=2", ranks=2)
    printed, _ = process.communicate(timeout=SECONDS)
    ours = re.split(r"^[WE]\d{4} .*torch/distributed/elastic", printed, maxsplit=1, flags=re.MULTILINE)[0]
    message = ours.count("error on rank ") == 1 and "Traceback" not in ours
    assert process.returncode == 0 or message, f"{what}: exit {process.returncode}\n{printed}"
