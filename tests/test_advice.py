"""What a message proposes, the job takes: each proposed value is put into the config, and the same check goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from streaming import MDSWriter

import jobs
from mds_data import sample_tokens
from mosaic_photon.callbacks.registry import build_callbacks
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.load import load_job
from mosaic_photon.train_spec import check_job, data_of_job, spec_of_job

P = "--parallelism."
SIX_RANKS = ["--training.seq_len=60", "--training.global_batch_size=6"]
CASES: dict[str, tuple[int, list[str], list[str]]] = {
    # name: (processes, flags that the job refuses, flags that its message proposes)
    "an odd sequence": (1, ["--training.seq_len=63"], ["--training.seq_len=62"]),
    "samples that are too short": (1, ["--training.seq_len=256"], ["--training.seq_len=126"]),
    "too short for two ranks": (
        2,
        [f"{P}tensor_parallel_degree=2", "--training.seq_len=256"],
        ["--training.seq_len=124"],
    ),
    "too short in validation": (1, ["--validation.enable", "--validation.seq_len=127"], ["--validation.seq_len=64"]),
    "heads": (6, [f"{P}tensor_parallel_degree=6", *SIX_RANKS], [f"{P}tensor_parallel_degree=2"]),
    "checkpoints": (1, ["--checkpoint.async_mode=async_with_pinned_mem"], ["--checkpoint.async_mode=async"]),
    "a flavor's name": (1, ["--model.flavor=debugmodle"], ["--model.flavor=debugmodel"]),
    "a model's name": (1, ["--model.name=llama3_mosiac"], ["--model.name=llama3_mosaic"]),
    "an optimizer's name": (1, ["--optimizer.name=QHADPOT"], ["--optimizer.name=QHADOPT"]),
    "a compiler's name": (1, ["--compile.enable", "--compile.backend=inducter"], ["--compile.backend=inductor"]),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of 128 tokens, as most data sets have a power of two."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        with MDSWriter(out=str(folder / split), columns={"tokens": "ndarray:int32:128"}) as writer:
            for number in range(16):
                writer.write({"tokens": sample_tokens(number, 128).astype("int32")})
    return folder


@pytest.fixture
def judge(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The message with which a job is refused before its model is built, "" if it is not."""

    def judged(flags: list[str], processes: int = 1, job: str = jobs.JOB, dataset: str = "") -> str:
        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": 1}.items():
            monkeypatch.setenv(name, str(value))
        _, config, _, data_path = jobs.write_job(tmp_path, data, job, jobs.DATA + dataset)
        try:
            loaded = load_job(config, data_path, flags)
            spec = spec_of_job(loaded)
            opened = data_of_job(spec, loaded, check_job(loaded, spec))
            build_callbacks(loaded.callbacks)
        except ConfigError as error:
            return str(error)
        opened.close()
        return ""

    return judged


@pytest.mark.parametrize("name", CASES)
def test_a_proposed_value_is_taken(name: str, judge: Callable[..., str]) -> None:
    processes, refused, proposed = CASES[name]
    message = judge(refused, processes)
    for flag in proposed:
        key, value = flag.removeprefix("--").split("=")
        assert key.rpartition(".")[2] in message and re.search(rf"\b{value}\b", message), message
    changed = [flag for flag in refused if flag.partition("=")[0] not in {new.partition("=")[0] for new in proposed}]
    assert judge([*changed, *proposed], processes) == ""


def test_the_length_of_samples_is_proposed_in_both_meanings(judge: Callable[..., str]) -> None:
    assert "set training.seq_len = 126, or max_seq_len = training.seq_len = 128" in judge(["--training.seq_len=256"])
    whole = jobs.DATA.replace('split = "train"', 'split = "train"\nmax_seq_len = 128')
    assert whole != jobs.DATA
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "DATA", whole)
        assert judge(["--training.seq_len=128"]) == ""


def test_a_model_that_takes_odd_lengths_is_told_so(judge: Callable[..., str]) -> None:
    job = jobs.JOB.replace("llama3_mosaic", "mpt_mup_mosaic").replace("dim = 64", "d_model = 64")
    assert "set training.seq_len = 127, or max_seq_len = training.seq_len = 128" in judge(
        ["--training.seq_len=256"], job=job
    )
    assert judge(["--training.seq_len=127"], job=job) == ""


def test_a_vocabulary_is_proposed_that_the_tokenizer_fits_in(judge: Callable[..., str]) -> None:
    job = jobs.JOB.replace("[model.overrides]", "[model.overrides]\nvocab_size = 100")
    message = judge([], job=job)
    size = re.search(r"set \[model.overrides\] vocab_size = (\d+)", message)
    assert size is not None, message
    assert judge([], job=job.replace("vocab_size = 100", f"vocab_size = {size[1]}")) == ""
