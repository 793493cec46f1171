"""`mosaic-photon init`: what it writes trains by the command that it prints, and it leaves nothing half-made."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft7Validator
from streaming import MDSWriter
from transformers import AutoTokenizer

import jobs
from mds_data import write_mds
from mosaic_photon.cli import main
from mosaic_photon.init.files import FirstJob
from mosaic_photon.init.shards import Shards, look_at
from mosaic_photon.init.sizes import FAMILIES, Machine, Size, plan
from mosaic_photon.job.load import load_job
from mosaic_photon.job.schema import data_schema, job_schema
from mosaic_photon.models.model_args import build_on_meta
from mosaic_photon.titan.parts import HuggingFaceTokenizer
from mosaic_photon.tokenizers import BYTE_LEVEL, special_tokens, vocabulary_size
from mosaic_photon.train_spec import spec_of_job
from prepare_calls import tree

GIB = 1 << 30


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mosaic_photon.init.sizes.Machine.here", lambda: Machine(0))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text with a space in its name."""
    folder = tmp_path_factory.mktemp("some text")
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"Document {number}: grüße, 世界.\n" * 30, "utf-8")
    return folder


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job and the data config; both are as the schemas have them."""
    job, data = (tomllib.loads((folder / f"{name}.toml").read_text()) for name in ("job", "data"))
    assert not [*Draft7Validator(job_schema()).iter_errors(job), *Draft7Validator(data_schema()).iter_errors(data)]
    return job, data


def printed_command(printed: str) -> str:
    return re.search(r"^train:\n  (.*)$", printed, re.MULTILINE)[1]


def shell(command: str, folder: Path) -> str:
    """Run a line in a shell whose path has this environment's programs; returns what it printed."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    env = {k: v for k, v in os.environ.items() if not k.startswith("MASTER_")} | {"PATH": path}
    run = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("llama3", " -- --training.steps=2 --metrics.log_freq=1"),
        pytest.param("mpt", " -- --training.steps=2 --metrics.log_freq=1", marks=pytest.mark.slow),
        pytest.param("llama3", "", marks=pytest.mark.slow),
    ],
)
def test_printed_command_trains(model: str, more: str, text: Path, tmp_path: Path) -> None:
    """As it is, from the folder where it was printed, spaces in names and all; and with flags behind it."""
    printed = shell(f"mosaic-photon init 'my run' --text '{text}' --model {model}", tmp_path)
    command = printed_command(printed)
    assert command == "mosaic-photon train 'my run/job.toml' 'my run/data.toml'"
    job, data = read(tmp_path / "my run")
    assert job["training"]["seq_len"] == 256 and job["model"]["hf_assets_path"] == str(BYTE_LEVEL)
    assert (tmp_path / "my run" / "shards" / "val" / "index.json").is_file() and "mosaic_eval_dataloader" in data
    trained = shell(command + more, tmp_path)
    assert re.search(rf"step: +{2 if more else 100} .*loss", trained), trained
    assert "validate step:" in trained
    assert (tmp_path / "my run" / "outputs" / "checkpoint" / f"step-{2 if more else 100}" / ".metadata").is_file()


def test_shards_that_prepare_made_bring_their_tokenizer(prepared_data: Path, tmp_path: Path) -> None:
    assert main(["init", str(tmp_path / "run"), "--mds", str(prepared_data)]) == 0
    job, data = read(tmp_path / "run")
    assert job["model"]["hf_assets_path"] == str(jobs.TOKENIZER) and job["model"]["overrides"]["vocab_size"] == 2048
    assert job["training"]["seq_len"] == job["validation"]["seq_len"] == 64 and job["validation"]["enable"]
    assert data["mosaic_dataloader"]["dataset"]["local"] == str(prepared_data)
    assert data["mosaic_eval_dataloader"]["dataset"]["split"] == "val"
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["data.toml", "job.toml"]


@pytest.mark.parametrize("encoding", ["ndarray:int32:32", "ndarray", "bytes"])
def test_other_shards_get_a_tokenizer_that_covers_their_ids(
    encoding: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of 32 tokens, llm-foundry's meaning: all are read, and the last has no target."""
    folder = tmp_path / "mds"
    write_tokens(folder, 32, encoding)
    assert main(["init", str(tmp_path / "run"), "--mds", str(folder)]) == 0
    job, data = read(tmp_path / "run")
    dataset = data["mosaic_dataloader"]["dataset"]
    assert job["training"]["seq_len"] == dataset["max_seq_len"] == 32 and "split" not in dataset
    assert dataset.get("token_encoding_type") == ("int64" if encoding == "bytes" else None)
    assert look_at(str(folder)).largest < job["model"]["overrides"]["vocab_size"] <= 3072
    tokenizer = job["model"]["hf_assets_path"]
    assert tokenizer == str(tmp_path / "run" / "tokenizer")
    assert "no tokenizer is named" in capfd.readouterr().out
    flags = ["--training.steps=1", "--checkpoint.enable=false"]
    assert (
        jobs.run_here(["--config", f"{tmp_path}/run/job.toml", "--mosaic-config", f"{tmp_path}/run/data.toml"], *flags)
        == 0
    )


def test_nothing_is_overwritten_and_nothing_half_made(
    text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    assert main(["init", str(tmp_path / "mine"), "--text", str(text)]) == 1
    assert "has files (notes); nothing is overwritten" in capfd.readouterr().err
    assert tree(tmp_path / "mine") == {"notes": b"keep"}

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("mosaic_photon.init.files.FirstJob.job_config", fail)
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "new/run"):
        with pytest.raises(OSError, match="no space"):
            main(["init", str(tmp_path / folder), "--text", str(text)])
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "empty", tmp_path / "mine", tmp_path / "mine" / "notes"]


def test_one_document_is_not_split(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("all work and no play\n" * 100)
    (tmp_path / "run").mkdir()
    assert main(["init", str(tmp_path / "run"), "--text", str(tmp_path / "one.txt")]) == 0
    job, data = read(tmp_path / "run")
    assert not job["validation"]["enable"] and "mosaic_eval_dataloader" not in data
    assert job["training"]["local_batch_size"] == 4


def write_tokens(folder: Path, length: int, encoding: str = "ndarray") -> None:
    """Eight samples with ids up to 2,280."""
    with MDSWriter(out=str(folder), columns={"tokens": encoding}) as out:
        for number in range(8):
            row = np.arange(number, number + length) * 60
            out.write({"tokens": row.tobytes() if encoding == "bytes" else row.astype(np.int32)})


def _write_text(folder: Path) -> None:
    with MDSWriter(out=str(folder), columns={"text": "str"}) as out:
        out.write({"text": "hello"})


MISTAKES = {
    # what is made at {at}, the words of the call, what the message must say
    "no text there": (None, ["--text", "{at}"], "source"),
    "empty text": (lambda at: at.mkdir(), ["--text", "{at}"], "no text in"),
    "little text": (lambda at: at.write_text("short"), ["--text", "{at}"], "less than one sample of 257: give more"),
    "no such folder": (None, ["--mds", "{at}"], "there is no such folder"),
    "a lost slash": (None, ["--mds", "s3:/data/web"], "s3:/data/web: a store's address has two slashes: s3://data"),
    "no shards": (lambda at: at.mkdir(), ["--mds", "{at}"], "no shards there"),
    "text shards": (_write_text, ["--mds", "{at}"], "have no tokens, but text. `mosaic-photon prepare`"),
    "short samples": (lambda at: write_tokens(at, 1), ["--mds", "{at}"], "have 1 token;"),
    "other tokenizer": (
        lambda at: write_mds(at, 99),
        ["--mds", "{at}", "--tokenizer", str(BYTE_LEVEL)],
        "has 259 ids: name the one that they were made with",
    ),
    "no tokenizer": (lambda at: write_mds(at, 2), ["--mds", "{at}", "--tokenizer", "{at}/none"], "does not exist"),
    "no tokenizer.json": (lambda at: write_mds(at, 2), ["--mds", "{at}", "--tokenizer", "{at}"], "no tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_message(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # else it warns of forks, where other tests have used it
    make, words, message = MISTAKES[name]
    if make is not None:
        make(tmp_path / "at")
    before = sorted(tmp_path.rglob("*"))
    assert main(["init", str(tmp_path / "run"), *(word.format(at=tmp_path / "at") for word in words)]) == 1
    printed = capfd.readouterr()
    errors = printed.err.splitlines()
    assert len(errors) == 1 and message in errors[0], printed
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_the_configs_cannot_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, message in (("$HOME", "are a shell's"), (b"\xff".decode("utf-8", "surrogateescape"), "not UTF-8")):
        assert main(["init", str(tmp_path / name)]) == 1
        assert message in capfd.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file")]) == 1
    assert "is a file" in capfd.readouterr().err


def test_the_tokenizer_that_is_gone_is_asked_for(
    prepared_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(prepared_data / "train")
    record = (prepared_data / "prepare.json").read_text().replace(str(jobs.TOKENIZER), "/gone")
    (tmp_path / "data" / "prepare.json").write_text(record)
    assert main(["init", str(tmp_path / "run"), "--mds", str(tmp_path / "data")]) == 1
    assert "made with, '/gone', is not on this machine as it was: name it with --tokenizer" in capfd.readouterr().err
    call = ["init", str(tmp_path / "run"), "--mds", str(tmp_path / "data"), "--tokenizer", str(jobs.TOKENIZER)]
    assert main(call) == 0


def test_shipped_tokenizer_is_a_token_a_byte_and_loads_everywhere() -> None:
    """In TorchTitan and in transformers; made by tests/assets/make_tokenizer.py."""
    titan, theirs = HuggingFaceTokenizer(tokenizer_path=str(BYTE_LEVEL)), AutoTokenizer.from_pretrained(BYTE_LEVEL)
    text = "naïve 世界 🙂\n\tx = 1"
    assert len(titan.encode(text, add_bos=False, add_eos=False)) == len(text.encode())
    assert theirs.decode(theirs.encode(text)) == text and titan.decode(theirs.encode(text)) == text
    assert vocabulary_size(titan) == vocabulary_size(theirs) == 259
    assert special_tokens(BYTE_LEVEL)["eos_token"] == "<|eos|>" and titan.eos_id == theirs.eos_token_id == 1


def test_shipped_tokenizer_is_what_the_script_makes(tmp_path: Path) -> None:
    script = str(jobs.TOKENIZER.with_name("make_tokenizer.py"))
    subprocess.run([sys.executable, script, str(tmp_path / "made"), "--bytes"], check=True)
    assert tree(tmp_path / "made") == tree(BYTE_LEVEL)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_largest_model_whose_state_takes_half_of_the_memory(family: str) -> None:
    """And a micro-batch of it in a quarter; on CPU cores the debug size."""
    assert plan(family, Machine(0), 320, 256, 1000).size.flavor == "debugmodel"
    widths = []
    for machine in (Machine(1, 4 * GIB), Machine(1, 24 * GIB), Machine(1, 80 * GIB), Machine(8, 80 * GIB)):
        chosen = plan(family, machine, 50304, 2048, 10**6)
        family_sizes = FAMILIES[family]
        number = family_sizes.index(chosen.size)
        half = machine.gpus * machine.memory / 2
        assert 16 * chosen.size.parameters(50304) <= half or number == 0
        assert number == len(family_sizes) - 1 or 16 * family_sizes[number + 1].parameters(50304) > half
        widths.append(chosen.size.width)
    assert widths == sorted(set(widths)) and widths[-1] == 4096


@pytest.mark.parametrize(("family", "size"), [(family, size) for family in FAMILIES for size in FAMILIES[family]])
def test_sizes_are_those_of_the_models(family: str, size: Size, tmp_path: Path) -> None:
    """The job's overrides give the model whose parameters the rule counts, within a tenth."""
    shards = Shards({"local": "data"}, "train", None, 10**6, 1025, 0)
    planned = dataclasses.replace(plan(family, Machine(1, 80 * GIB, True), 32768, 1024, 10**6), size=size)
    FirstJob(family, planned, shards, 32768, str(BYTE_LEVEL), str(tmp_path / "out"), room=1 << 60).write(tmp_path)
    config, _ = read(tmp_path)
    assert config["training"]["mixed_precision_param"] == "bfloat16" and config["checkpoint"]["enable"]
    job = load_job(f"{tmp_path}/job.toml", f"{tmp_path}/data.toml", [])
    model = build_on_meta(job, spec_of_job(job))
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert abs(size.parameters(32768) / counted - 1) < 0.1


def test_micro_batch_is_cut_to_what_there_is() -> None:
    """Of memory: fewer sequences, then all activations computed again, then a part of a sample; of samples: fewer."""
    small, long = Machine(1, 8 * GIB), Machine(1, 80 * GIB)
    batches = [plan("llama3", small, 320, length, 10**6) for length in (256, 4096, 16384, 1 << 20)]
    assert batches[0].local_batch > batches[1].local_batch >= 1
    assert [one.recompute for one in batches] == [False, False, True, True]
    assert batches[2].seq_len == 16384 and batches[3].seq_len < 1 << 20 and batches[3].seq_len % 256 == 0
    assert plan("llama3", long, 320, 256, 5).local_batch == 4
    assert plan("llama3", Machine(8, 80 * GIB), 320, 256, 3).processes == 3
    assert plan("llama3", Machine(0), 320, 8192, 9).seq_len == 2048
