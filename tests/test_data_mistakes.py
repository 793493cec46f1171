"""Data that a job cannot train on: one message, exit code 1, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

import jobs


def write(folder: Path, columns: dict[str, str], samples: list[dict]) -> None:
    with MDSWriter(out=str(folder / "train"), columns=columns, hashes=["sha1"]) as writer:
        for sample in samples:
            writer.write(sample)


def tokens(value: int = 5) -> np.ndarray:
    return np.full(65, value, np.int32)


def not_mds(folder: Path) -> None:
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "index.json").write_text("{]")


def empty(folder: Path) -> None:
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "index.json").write_text(json.dumps({"version": 2, "shards": []}))


def other_columns(folder: Path) -> None:
    write(folder, {"image": "bytes"}, [{"image": b"x"}] * 20)


def outside_the_vocabulary(folder: Path) -> None:
    samples = [{"tokens": tokens(5000 if number == 37 else 5)} for number in range(40)]
    write(folder, {"tokens": "ndarray:int32:65"}, samples)


def nothing(folder: Path) -> None:
    """The cache cannot be made, or the remote is not there."""


CACHE = jobs.TOKENIZER / "tokenizer.json" / "cache"
DATASET = '[mosaic_dataloader.dataset]\nlocal = "{data}"'
MISTAKES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    # name: (what lies in the folder, the dataset's table, what the message must say)
    "not MDS": (not_mds, DATASET, "index.json"),
    "empty": (empty, DATASET, "the dataset is empty"),
    "other columns": (other_columns, DATASET, "neither a 'tokens' nor a 'text' column"),
    "outside the vocabulary": (outside_the_vocabulary, DATASET, "5000"),
    "unreachable remote": (
        nothing,
        '[mosaic_dataloader.dataset]\nremote = "/nowhere/at/all"\ndownload_retry = 0\nlocal = "{data}"',
        "/nowhere/at/all",
    ),
    "unwritable cache": (
        nothing,
        '[mosaic_dataloader.dataset]\nremote = "{data}"\nlocal = "'
        + str(jobs.TOKENIZER / "tokenizer.json")
        + '/cache"',
        "tokenizer.json/cache",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, dataset, expected = MISTAKES[name]
    make(tmp_path / "shards")
    arguments = jobs.write_job(tmp_path, tmp_path / "shards", dataloader=jobs.DATA.replace(DATASET, dataset))
    assert jobs.run_here(arguments) == 1
    printed = capfd.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and expected in printed[printed.index(errors[0]) :], printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "right", "expected"), [('"vall"', '"val"', "vall"), ("seq_len = 65", "seq_len = 64", "65")]
)
def test_mistake_in_the_eval_data(
    wrong: str, right: str, expected: str, tmp_path: Path, prepared_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, validation = jobs.JOB.split("[validation]")
    job = f"{before}[validation]\nenable = true{validation.replace(right, wrong)}"
    arguments = jobs.write_job(tmp_path, prepared_data, job, jobs.DATA.replace(right, wrong))
    assert jobs.run_here(arguments) == 1
    assert expected in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
