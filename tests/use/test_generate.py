"""`mosaic-photon generate`: transformers' own text, token by token, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mosaic_photon.cli import main
from mosaic_photon.use.checkpoint import job_model
from mosaic_photon.use.opened import Opened, open_in_transformers


@pytest.fixture(scope="module")
def opened(trained_job: Path) -> Opened:
    return open_in_transformers(job_model(str(trained_job / "job.toml")))


def texts(capsys: pytest.CaptureFixture[str], job: Path, *words: Any) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["generate", "--job", str(job / "job.toml"), "--json", *map(str, words)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_greedy_is_the_likeliest_token_each_time(trained_job: Path, opened: Opened, capsys: Any) -> None:
    """With the cache as without it; by the text, which comes as it is made, as by the tokens."""
    (found,) = texts(capsys, trained_job, "--prompt", "def main():", "--greedy", "--max-new-tokens", 12)
    ids = opened.tokenizer("def main():", return_tensors="pt").input_ids
    theirs = opened.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    for _ in range(12):
        with torch.no_grad():
            ids = torch.cat([ids, opened.model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert found["tokens"] == theirs == ids[0, -12:].tolist()
    assert found["text"] == opened.tokenizer.decode(theirs, skip_special_tokens=True)
    step = str(trained_job / "out/checkpoint/step-4")
    words = ["generate", step, "--job", str(trained_job / "job.toml"), "--prompt", "def main():"]
    assert main([*words, "--temperature", "0", "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == f"def main():{found['text']}\n"


def test_sampling_goes_by_seed_and_prompt(trained_job: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "prompts").write_text("import os\n\nclass A:\nimport os\n")
    prompts = ["--prompts", tmp_path / "prompts", "--max-new-tokens", 8]
    first, other, again = texts(capsys, trained_job, *prompts)
    assert (first["prompt"], other["prompt"]) == ("import os", "class A:")
    assert first == again and len(first["tokens"]) == 8
    assert texts(capsys, trained_job, *prompts, "--seed", 1)[0]["tokens"] != first["tokens"]
    hot = texts(capsys, trained_job, *prompts, "--temperature", 5)[0]
    assert hot["tokens"] != first["tokens"]
    greedy = texts(capsys, trained_job, *prompts, "--greedy")[0]
    assert texts(capsys, trained_job, *prompts, "--top-p", 1e-6)[0] == greedy  # the likeliest alone is left


def test_the_text_ends_with_the_models_positions(trained_job: Path, capsys: Any) -> None:
    (found,) = texts(capsys, trained_job, "--prompt", "x = 1", "--max-new-tokens", 1000)
    assert 0 < len(found["tokens"]) < 64


def test_what_cannot_be_generated_from_is_one_message(trained_job: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").write_text("\n\n")
    (tmp_path / "config.json").write_text("{}")
    for words, says in [
        (["--prompt", "x", "--max-new-tokens", "0"], "must be at least 1"),
        (["--prompt", "x", "--top-p", "0"], "above 0 and at most 1"),
        (["--prompt", "x", "--temperature", "-1"], "must be 0 (the likeliest token) or more"),
        (["--prompt", "x", "--temperature", "nan"], "--temperature is nan"),
        (["--prompt", "\udcff"], "is not UTF-8"),  # as Python gives the byte 0xff
        (["--prompt", "x", "--seed", "-1"], "--seed is -1"),
        (["--prompt", "x " * 200], "and the model has 64 positions"),
        (["--prompts", str(tmp_path / "empty")], "has no prompt"),
        (["--prompts", str(tmp_path / "none")], "cannot be read"),
        ([str(tmp_path / "none"), "--prompt", "x"], "no such folder"),
        ([str(tmp_path), "--prompt", "x"], "is no folder of transformers"),
    ]:
        assert main(["generate", "--job", str(trained_job / "job.toml"), *words]) == 1
        assert says in capsys.readouterr().err


def test_another_models_tokenizer_is_refused(trained_job: Path, tmp_path: Path, capsys: Any) -> None:
    import tokenizers_made

    other = tokenizers_made.byte_level(tmp_path / "other", special=[f"<{number}>" for number in range(2100)])
    job = (trained_job / "job.toml").read_text()
    lines = [f'hf_assets_path = "{other}"' if "hf_assets_path" in line else line for line in job.splitlines()]
    (tmp_path / "job.toml").write_text("\n".join(lines))
    words = ["generate", str(trained_job / "out/checkpoint/step-4"), "--job", str(tmp_path / "job.toml")]
    assert main([*words, "--prompt", "x"]) == 1
    assert "Choose another tokenizer or flavor" in capsys.readouterr().err
