"""mosaic-photon inspect: its figures equal the data's own, damage is found, samples are shown as text."""

import json
from pathlib import Path

import numpy as np
import pytest

from mosaic_photon.cli import main

TOKENIZER = str(Path(__file__).parents[1] / "assets" / "tokenizer")
TEXTS = [f"document {number}: " + "some words to count and a smile 🙂 " * (number % 7) for number in range(200)]
JOB = f"""
[model]
name = "llama3_mosaic"
flavor = "debugmodel"
hf_assets_path = "{TOKENIZER}"
[training]
steps = 30
seq_len = 32
local_batch_size = 2
global_batch_size = 8
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two prepared folders: web uncompressed, code compressed; and text to be tokenised on the fly."""
    from streaming import MDSWriter

    root = tmp_path_factory.mktemp("data")
    source = root / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    common = [str(source), "--tokenizer", TOKENIZER, "--seq-len", "32", "--val", "0.2", "--workers", "1"]
    assert main(["prepare", *common, "--out", str(root / "web")]) == 0
    code = ["--out", str(root / "code"), "--compression", "zstd:3", "--hashes", "xxh64,sha1"]
    assert main(["prepare", *common, *code]) == 0
    with MDSWriter(columns={"text": "str"}, out=str(root / "text" / "train")) as writer:
        for text in ["\x1b[2Jevil\ttext", *TEXTS]:
            writer.write({"text": text})
    return root


def samples_of(folder):
    return sum(shard["samples"] for shard in json.loads((folder / "index.json").read_text())["shards"])


def inspect(capsys, *words):
    capsys.readouterr()
    code = main(["inspect", *map(str, words)])
    return code, capsys.readouterr()


def write(path, text):
    path.write_text(text)
    return path


def one_stream(path, folder, key="local", more=""):
    text = (
        f'[mosaic_dataloader]\nname = "text"\n[mosaic_dataloader.dataset]\n{key} = "{folder}"\nsplit = "train"\n{more}'
    )
    return write(path, text)


def test_weighted_streams_with_eval_and_job(data, tmp_path, capsys):
    """A llm-foundry YAML with weighted streams from a remote, and the epochs that a job makes of them."""
    config = write(
        tmp_path / "data.yaml",
        f"""
train_loader:
  name: text
  dataset:
    split: train
    epoch_size: 100
    streams:
      web: {{remote: {data}/web, local: {tmp_path}/cache/web, proportion: 0.75}}
      code: {{remote: {data}/code, local: {tmp_path}/cache/code, proportion: 0.25}}
  num_workers: 0
eval_loader:
  name: text
  dataset: {{local: {data}/web, split: val}}
""",
    )
    job = write(tmp_path / "job.toml", JOB)
    code, output = inspect(capsys, config, "--json", "--job", job, "--world-size", 2, "--verify")
    assert code == 0
    report = json.loads(output.out)
    web, packed = report["train"]["streams"]
    samples = samples_of(data / "web/train")
    assert (web["name"], web["samples"], web["tokens"]) == ("web", samples, samples * 33)
    assert web["columns"] == {"tokens": "ndarray:int32:33"}
    assert (web["shards"], web["shards_here"], web["files_verified"]) == (1, 0, 0)
    assert web["raw_bytes"] == web["stored_bytes"] == (data / "web/train/shard.00000.mds").stat().st_size
    assert packed["compression"] == ["zstd:3"]
    assert packed["hashes"] == ["sha1", "xxh64"]
    assert packed["stored_bytes"] == (data / "code/train/shard.00000.mds.zstd").stat().st_size < packed["raw_bytes"]
    assert [stream["epoch_samples"] for stream in (web, packed)] == [75, 25]
    assert report["eval"]["streams"][0]["samples"] == samples_of(data / "web/val")
    assert report["eval"]["streams"][0]["files_verified"] == 1
    expected = {"data_parallel": 2, "samples_per_step": 8, "tokens_per_step": 256, "steps_per_epoch": 12}
    assert report["job"].items() >= expected.items()
    assert report["job"]["epochs"] == 30 / 12

    code, output = inspect(capsys, config, "--job", job, "--samples", 1)  # fetches the shards it shows
    for words in ("eval: loader text", "75.0%", "zstd:3", "1, 0 here", "its 30 steps make 2.50 epochs"):
        assert words in output.out
    assert "decoded: <|bos|>document" in output.out
    assert (tmp_path / "cache/web/train/shard.00000.mds").exists()


def test_first_samples_are_the_data(data, tmp_path, capsys):
    config = one_stream(tmp_path / "data.toml", data / "web")
    _, output = inspect(capsys, config, "--json", "--samples", 3, "--tokenizer", TOKENIZER)
    shown = json.loads(output.out)["train"]["samples"]
    assert [sample["sample"] for sample in shown] == [0, 1, 2]
    joined = "".join(sample["decoded"] for sample in shown)
    assert joined.startswith("<|bos|>document ")
    assert all(len(sample["tokens"]) == 33 for sample in shown)


def test_text_streams_and_hostile_text(data, tmp_path, capsys):
    config = one_stream(tmp_path / "data.toml", data / "text")
    code, output = inspect(capsys, config, "--samples", 1)
    assert code == 0
    assert "\x1b[2J" not in output.out
    assert "text: \\x1b[2Jevil text" in output.out


@pytest.mark.parametrize("fault", ["flipped", "cut", "missing"])
def test_damage_is_found_and_left_as_it_is(data, tmp_path, capsys, fault):
    folder = tmp_path / "web" / "train"
    folder.mkdir(parents=True)
    for file in (data / "web/train").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    shard = folder / "shard.00000.mds"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    if fault == "missing":
        shard.unlink()
    else:
        shard.write_bytes(content if fault == "flipped" else content[:-1])
    config = one_stream(tmp_path / "data.toml", tmp_path / "web")
    code, output = inspect(capsys, config, "--verify")
    said = {"flipped": "has xxh64 ", "cut": f"has {len(content) - 1} bytes", "missing": "missing"}[fault]
    assert code == 1
    assert f"{shard}: " in output.out
    assert said in output.out
    assert shard.exists() == (fault != "missing")
    code, output = inspect(capsys, config)
    assert code == 0
    assert "not verified" in output.out


def test_files_without_hashes_are_compared_by_size_and_said_to_be(tmp_path, capsys):
    """As llm-foundry's conversion scripts write them."""
    from streaming import MDSWriter

    with MDSWriter(columns={"text": "str"}, out=str(tmp_path / "bare" / "train"), size_limit=100) as writer:
        for text in TEXTS[:20]:
            writer.write({"text": text})
    config = one_stream(tmp_path / "data.toml", tmp_path / "bare")
    code, output = inspect(capsys, config, "--verify", "--json")
    stream = json.loads(output.out)["train"]["streams"][0]
    assert (code, stream["hashes"], stream["files_hashed"]) == (0, [], 0)
    assert stream["files_verified"] == stream["shards"] > 1
    _, output = inspect(capsys, config, "--verify")
    assert f"none ({stream['shards']} of {stream['shards']} files good, sizes only)" in " ".join(output.out.split())


def test_hashed_files_are_counted(data, tmp_path, capsys):
    _, output = inspect(capsys, one_stream(tmp_path / "data.toml", data / "web"), "--verify", "--json")
    stream = json.loads(output.out)["train"]["streams"][0]
    assert stream["files_hashed"] == stream["files_verified"] == 1


@pytest.mark.parametrize("value", [{1, 2}, {(1, 2): "x"}, {"label": 3}])
def test_pickled_columns_are_shown(tmp_path, capsys, value):
    from streaming import MDSWriter

    with MDSWriter(columns={"text": "str", "extra": "pkl"}, out=str(tmp_path / "pickled" / "train")) as writer:
        writer.write({"text": "a", "extra": value})
    config = one_stream(tmp_path / "data.toml", tmp_path / "pickled", more="allow_unsafe_types = true")
    code, output = inspect(capsys, config, "--samples", 1, "--json")
    shown = value if value == {"label": 3} else repr(value)
    assert (code, json.loads(output.out)["train"]["samples"][0]["extra"]) == (0, shown)


@pytest.mark.parametrize(
    ("encoding", "value", "shown", "problem"),
    [
        (
            "ndarray:int32",
            np.array([5, 9999, -1], np.int32),
            "tokens (3): 5, 9999 (outside), -1 (outside)",
            "2 token ids",
        ),
        ("bytes", np.array([5, 6, 7], np.uint16).tobytes(), "tokens: 05 00 06 00 07 00", "no whole number of ids"),
        ("bytes", np.array([5, 9999], np.int64).tobytes(), "tokens (2): 5, 9999 (outside)", "1 token ids are outside"),
        ("ndarray", np.full((2, 2), 7), "tokens (2): [7, 7], [7, 7]", "no row of token ids"),
        ("ndarray", np.array([0.5, np.nan]), "0.5, nan", "no row of token ids"),
        ("str", "words", "tokens: words", "no row of token ids"),
        ("json", {"a": [1]}, 'tokens: {"a": [1]}', "no row of token ids"),
    ],
)
def test_tokens_are_shown_whatever_they_are(tmp_path, capsys, encoding, value, shown, problem):
    from streaming import MDSWriter

    with MDSWriter(columns={"tokens": encoding}, out=str(tmp_path / "odd" / "train")) as writer:
        writer.write({"tokens": value})
    config = one_stream(tmp_path / "data.toml", tmp_path / "odd")
    code, output = inspect(capsys, config, "--samples", 1, "--tokenizer", TOKENIZER)
    assert code == 1 and shown in output.out, output
    assert problem in output.out[output.out.index("PROBLEM: ") :]


def test_bad_input(data, tmp_path, capsys):
    code, output = inspect(capsys, one_stream(tmp_path / "data.toml", data / "web"), "--tokenizer", tmp_path)
    assert (code, "no tokenizer.json" in output.err) == (1, True)
    code, output = inspect(capsys, one_stream(tmp_path / "data.toml", data / "nowhere"))
    assert (code, "is no MDS dataset" in output.err) == (1, True)
    code, output = inspect(capsys, one_stream(tmp_path / "data.toml", data / "web", more="shufle = true"))
    assert (code, "Did you mean 'shuffle'?" in output.err) == (1, True)
    job = write(tmp_path / "job.toml", JOB.replace("seq_len = 32", "seq_len = 64"))
    code, output = inspect(capsys, one_stream(tmp_path / "data.toml", data / "web"), "--job", job)
    assert (code, "its samples have 33 tokens" in output.err) == (1, True)
