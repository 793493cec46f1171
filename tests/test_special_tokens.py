"""Tokenizers with one token for two things or none for one, data that says otherwise: what trains, what is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jobs
import tokenizers_made
from doctor_calls import say_all
from mosaic_photon.cli import main
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.tokenizers import check_separators, notes_on, special_tokens
from mosaic_photon.train_spec import build_train_spec
from prepare_calls import samples, write_jsonl

END = "<|endoftext|>"
TEXTS = [f"some words {number}" for number in range(600)]
FLEX = jobs.JOB.replace('"debugmodel"', '"debugmodel_flex_attn"').replace("steps = 4", "steps = 1")


@pytest.fixture(scope="module")
def one_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's kind: one token begins and ends."""
    folder = tmp_path_factory.mktemp("tokenizers") / "one"
    return tokenizers_made.byte_level(folder, [END], bos_token=END, eos_token=END)


def prepare(folder: Path, tokenizer: Path, *words: str) -> Path:
    source = write_jsonl(folder / "a.jsonl", TEXTS)
    options = ["--tokenizer", str(tokenizer), "--seq-len", "64", "--val", "0", "--workers", "1", *words]
    assert main(["prepare", str(source), "--out", str(folder / "data"), *options]) == 0
    return folder / "data"


def test_one_token_for_begin_and_end_is_once_between_documents_and_trains(tmp_path: Path, one_token: Path) -> None:
    from llmfoundry.data.data import ConcatTokensDataset
    from transformers import AutoTokenizer

    data = prepare(tmp_path, one_token)
    tokenizer = AutoTokenizer.from_pretrained(one_token)
    rows = ConcatTokensDataset([{"text": text} for text in TEXTS], tokenizer, 65, "", END, False)
    np.testing.assert_array_equal(samples(data / "train"), np.stack([row["tokens"] for row in rows]))
    arguments = jobs.write_job(tmp_path, data, FLEX.replace("{tokenizer}", str(one_token)))
    assert jobs.run_here(arguments) == 0
    assert jobs.scalars(tmp_path).keys() == {1}


def test_a_token_that_is_asked_for_twice_is_there_twice(tmp_path: Path, one_token: Path) -> None:
    row = samples(prepare(tmp_path, one_token, "--bos-text", END, "--eos-text", END) / "train")[0]
    assert (row[:-1][row[1:] == 0] == 0).any()


@pytest.mark.parametrize("more", [{}, {"eos_token_id": 5, "override_eos_token_id_mismatch_error": True}])
def test_masks_know_the_end_token_that_torchtitan_misses(one_token: Path, more: dict[str, Any]) -> None:
    job = MosaicJobConfig()
    job.model.hf_assets_path, job.mosaic.dataloader = str(one_token), {"dataset": more}
    spec = build_train_spec("llama3_mosaic")
    assert spec.build_tokenizer_fn is not None
    tokenizer = spec.build_tokenizer_fn(job)
    end = more.get("eos_token_id", 0)
    assert tokenizer.eos_id == end
    with torch.device("meta"):
        model = spec.model_cls(spec.model_args["debugmodel_flex_attn"])
    mask = model.get_attention_masks(torch.tensor([[7, end, 7, 8]]), tokenizer)
    zero, at = torch.tensor(0), torch.arange(4)
    assert [[bool(mask.mask_mod(zero, zero, q, k)) for k in at] for q in at] == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]


def test_separators_are_the_tokenizers_own_as_in_llm_foundry(tmp_path: Path, one_token: Path) -> None:
    from llmfoundry.data.utils import _validate_cfg
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    by_class = tmp_path / "gpt2"  # names no token, as GPT-2's own folder: its class has them
    by_class.mkdir()
    tokens = (one_token / "tokenizer.json").read_text()
    (by_class / "tokenizer.json").write_text(tokens)
    (by_class / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2TokenizerFast"}))
    for folder in (one_token, by_class):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        for role in ("eos", "bos"):
            for number in (0, 5):
                for override in ({}, {f"override_{role}_token_id_mismatch_error": True}):
                    dataset = {f"{role}_token_id": number, **override}
                    theirs = ours = True
                    try:
                        _validate_cfg(dict(dataset), AutoTokenizer.from_pretrained(folder))
                    except ValueError:
                        theirs = False
                    try:
                        check_separators(dataset, str(folder), tokenizer, "data")
                    except ConfigError:
                        ours = False
                    assert ours == theirs, (folder, dataset)


@pytest.mark.parametrize(
    ("special", "said"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, None),
        ({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}, "the pad token is the end token '</s>'"),
        ({"bos_token": "<s>"}, "the begin token '<s>' alone is between documents"),
        ({}, "nothing is between documents"),
    ],
)
def test_notes(special: dict[str, str], said: str | None) -> None:
    (note,) = notes_on(special) or [None]
    assert (note is None and said is None) or (note is not None and said is not None and said in note)


def test_prepare_job_and_doctor_say_that_a_model_never_learns_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tokenizers_made.byte_level(tmp_path / "tokenizer", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    data = prepare(tmp_path, folder)
    assert capfd.readouterr().out.count("the pad token is the end token") == 1
    job = jobs.JOB.replace("{tokenizer}", str(folder)).replace("steps = 4", "steps = 1")
    arguments = jobs.write_job(tmp_path, data, job, jobs.DATA.split("[mosaic_eval")[0])
    assert jobs.run_here(arguments) == 0
    assert capfd.readouterr().out.count("the pad token is the end token") == 1
    code, said = say_all(arguments, [], 1, monkeypatch, capfd)
    assert code == 0, said
    assert len(re.findall("^warn.*the pad token is the end token", said, re.MULTILINE)) == 1


@pytest.mark.parametrize("decoder", [False, True])
def test_special_tokens_are_those_that_transformers_finds(tmp_path: Path, decoder: bool) -> None:
    from transformers import AutoTokenizer

    folder = tokenizers_made.byte_level(tmp_path / "tokenizer", ["<s>", "</s>", "<e>"], eos_token="</s>")
    if decoder:
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<e>"}, "bos_token": "<s>"}))
    found, theirs = special_tokens(folder), AutoTokenizer.from_pretrained(folder)
    assert (found.get("bos_token"), found.get("eos_token")) == (theirs.bos_token, theirs.eos_token)
    assert theirs.eos_token == ("</s>" if decoder else "<e>")
