"""What the table says of tokens and padding, against the data's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import MDSWriter
from transformers import AutoTokenizer

import jobs
from doctor_calls import say_all
from mds_data import ASSETS, job, text_loader
from mosaic_photon.dataloader.padding import estimate

PAD = 2


def write(folder: Path, columns: dict[str, str], rows: list[dict[str, Any]]) -> Path:
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for row in rows:
            writer.write(row)
    return folder


def tokens(count: int, padded_to: int = 0) -> np.ndarray:
    return np.pad(np.arange(100, 100 + count), (0, max(0, padded_to - count)), constant_values=PAD).astype(np.int32)


def test_samples_of_varying_length(tmp_path: Path, build: Any) -> None:
    rows = [{"tokens": tokens(8 + 2 * (number % 5))} for number in range(200)]
    data = write(tmp_path / "data", {"tokens": "ndarray:int32"}, rows)
    found = estimate(build(job({"local": str(data)}, seq_len=64)).data, 64)
    assert str(found.streams[0]) == "about 2,400 tokens"
    assert found.padding == pytest.approx(1 - 12 / 64)
    assert found.in_words == "about 81% of the positions (200 samples read)"
    assert "samples have 12 tokens on average, training.seq_len is 64" in found.warning


def test_samples_longer_than_the_sequence_count_what_is_taken(tmp_path: Path, build: Any) -> None:
    data = write(tmp_path / "data", {"tokens": "ndarray:int32"}, [{"tokens": tokens(90)}] * 20)
    found = estimate(build(job({"local": str(data)}, seq_len=64)).data, 64)
    assert (found.streams[0].tokens, found.in_words, found.warning) == (20 * 64, "", "")


def test_samples_that_were_stored_with_padding(tmp_path: Path, build: Any) -> None:
    rows = [{"tokens": tokens(20 + number % 2, padded_to=65)} for number in range(20)]
    data = write(tmp_path / "data", {"tokens": "ndarray:int32:65"}, rows)
    found = estimate(build(job({"local": str(data)}, seq_len=64)).data, 64)
    assert str(found.streams[0]) == "about 410 tokens"
    same = [{"tokens": tokens(20, padded_to=65)}] * 300
    data = write(tmp_path / "same", {"tokens": "ndarray:int32:65"}, same)
    assert str(estimate(build(job({"local": str(data)}, seq_len=64)).data, 64).streams[0]) == "about 6,000 tokens"
    full = write(tmp_path / "full", {"tokens": "ndarray:int32:65"}, [{"tokens": tokens(65)}] * 20)
    found = estimate(build(job({"local": str(full)}, seq_len=64)).data, 64)
    assert (str(found.streams[0]), found.in_words) == ("1,280 tokens", "")


@pytest.mark.parametrize("kind", ["text", "finetuning"])
def test_text_is_counted_as_llm_foundry_tokenizes_it(tmp_path: Path, build: Any, kind: str) -> None:
    texts = ["word " * (1 + number % 7) for number in range(40)]
    tokenizer = AutoTokenizer.from_pretrained(ASSETS)
    if kind == "text":
        data = write(tmp_path / "data", {"text": "str"}, [{"text": text} for text in texts])
        loader = text_loader({"local": str(data)})
        expected = sum(len(tokenizer(text).input_ids) for text in texts)
    else:
        rows = [{"prompt": text, "response": " yes"} for text in texts]
        data = write(tmp_path / "data", {"prompt": "str", "response": "str"}, rows)
        dataset = {"remote": str(data), "local": f"{data}_cache", "decoder_only_format": True}
        loader = {"name": "finetuning", "drop_last": True, "num_workers": 0, "dataset": dataset}
        end = 1  # llm-foundry's end of an answer
        expected = sum(len(tokenizer(text).input_ids) + len(tokenizer(" yes").input_ids) + end for text in texts)
    built = build(job(loader=loader, local=2, batch=2, seq_len=64))
    if kind == "finetuning":
        assert str(estimate(built.data, 64).streams[0]) == f"at most {40 * 64:,} tokens"  # nothing is here yet
        next(iter(built))
        built.close()
    assert estimate(built.data, 64).streams[0].tokens == pytest.approx(expected, abs=1)


def test_job_and_doctor_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "data" / "train", {"tokens": "ndarray:int32"}, [{"tokens": tokens(16)}] * 64)
    job_text = jobs.JOB.replace("steps = 4", "steps = 1")
    arguments = jobs.write_job(tmp_path, tmp_path / "data", job_text, jobs.DATA.split("[mosaic_eval")[0])
    assert jobs.run_here(arguments) == 0
    printed = capfd.readouterr()
    assert "64 samples, about 1,024 tokens (100%)" in printed.err
    assert "about 75% of the positions (64 samples read)" in printed.err
    assert "padding is about 75%" in printed.out
    code, said = say_all(arguments, [], 1, monkeypatch, capfd)
    assert code == 0 and "warn  padding: padding is about 75%" in said
