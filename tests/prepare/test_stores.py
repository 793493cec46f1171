"""mosaic-photon prepare from and into an object store: the bytes of local files, whatever happens on the way."""

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mosaic_photon.cli import main
from mosaic_photon.prepare import objects as in_store
from prepare_calls import TOKENIZER, documents, prepare, tree, write_jsonl
from s3_proxy import always, each, reset, status

COMMAND = str(Path(sys.executable).with_name("mosaic-photon"))
PATTERN = "**/*.jsonl"


def write_corpus(folder):
    """Files of each kind, in folders whose walk differs from the order of their paths."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    texts = documents(240)
    for name in ("a/b", "a/__pycache__", "a/.git", "one"):
        (folder / name).mkdir(parents=True)
    plain = write_jsonl(folder / "b.jsonl", texts[:60])
    write_jsonl(folder / "a/b/c.jsonl", texts[60:90])
    write_jsonl(folder / "a/b.d.jsonl", texts[90:120])
    (folder / "a/z.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pyarrow.parquet.write_table(
        pyarrow.table({"text": texts, "n": range(240)}), folder / "p.parquet", row_group_size=50
    )
    (folder / "a/t.txt").write_text("\n".join(texts))
    for hidden in ("a/.git/config", "a/__pycache__/x.pyc", ".hidden"):
        (folder / hidden).write_bytes(b"\0")
    datasets.Dataset.from_dict({"text": texts[:100]}).save_to_disk(folder.parent / "saved")


@pytest.fixture(scope="module")
def corpus(s3, tmp_path_factory):
    """The folder, and beside it what prepare makes of it."""
    folder = tmp_path_factory.mktemp("local") / "corpus"
    write_corpus(folder)
    s3.upload(folder.parent, "corpora")
    with contextlib.chdir(folder.parent):
        assert prepare("corpus", f"corpus/{PATTERN}", "saved", out="out", **{"shard-mib": 1}) == 0
    return folder.parent


def objects(s3, bucket):
    found = s3.client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {one["Key"]: s3.client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in found}


def shards(files, below=""):
    """Without the record, which says what the sources were."""
    return {name[len(below) :]: data for name, data in files.items() if not name.endswith("prepare.json")}


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr("mosaic_photon.prepare.sources.PIECE_BYTES", 20_000)
    monkeypatch.setattr("mosaic_photon.prepare.read.PIECE_BYTES", 20_000)
    monkeypatch.setattr("mosaic_photon.prepare.parts.PART_BYTES", (60_000, 60_000))
    monkeypatch.setattr(in_store, "BLOCK", 15_000)
    monkeypatch.setattr("mosaic_photon.stores.PAUSE_S", 0.01)


def from_store(out, *words, **options):
    sources = ["s3://corpora/corpus", f"s3://corpora/corpus/{PATTERN}", "s3://corpora/saved"]
    return prepare(*sources, *words, out=out, **{"shard-mib": 1, **options})


@pytest.fixture
def out(s3, request):
    """An empty bucket."""
    name = re.sub(r"[^a-z]+", "-", request.node.name.lower())[:62].strip("-")
    s3.client.create_bucket(Bucket=name)
    return name


def test_a_store_gives_and_takes_the_bytes_of_local_files(s3, corpus, small_pieces, out, tmp_path, capsys):
    expected = shards(tree(corpus / "out"))
    assert from_store(tmp_path / "out") == 0
    assert shards(tree(tmp_path / "out")) == expected
    said = capsys.readouterr().out
    assert "left out (hidden): s3://corpora/corpus/.hidden, s3://corpora/corpus/a/.git" in said
    s3.client.put_object(Bucket=out, Key="tokens.old/x", Body=b"theirs")
    assert from_store(f"s3://{out}/tokens") == 0
    made = objects(s3, out)
    assert made.pop("tokens.old/x") == b"theirs"
    assert shards(made, "tokens/") == expected
    assert json.loads(made["tokens/prepare.json"])["splits"]["train"]["samples"] > 100
    for name, data in {"prepare.json": made["tokens/prepare.json"], "tokens/000000.json": b"{}"}.items():
        s3.client.put_object(Bucket=out, Key=f"tokens.partial/{name}", Body=data)  # a call was killed that had finished
    assert from_store(f"s3://{out}/tokens/") == 0
    assert "is already prepared" in capsys.readouterr().out
    assert objects(s3, out).keys() == {*made, "tokens.old/x"}


def test_faults_of_the_store_pass(s3, corpus, small_pieces, out, proxy):
    proxy.of, proxy.fault = lambda one: True, each(5, status(503), reset, status(500))
    assert from_store(f"s3://{out}/tokens") == 0
    assert shards(objects(s3, out), "tokens/") == shards(tree(corpus / "out"))
    kinds = {request.split()[0] for request in proxy.requests}
    assert kinds >= {"GET", "PUT", "DELETE"}


def test_a_killed_call_goes_on(s3, corpus, out, tmp_path):
    for number in range(4):
        text = "".join(json.dumps({"text": text * 40}) + "\n" for text in documents(300)[number::4])
        s3.client.put_object(Bucket=out, Key=f"in/{number}.jsonl", Body=text.encode())
        (tmp_path / f"{number}.jsonl").write_text(text)
    assert prepare(tmp_path, out=tmp_path / "out", **{"shard-mib": 1}) == 0
    words = [COMMAND, "prepare", f"s3://{out}/in", "--out", f"s3://{out}/made", "--tokenizer", TOKENIZER]
    words += ["--seq-len", "63", "--val", "0.2", "--shard-mib", "1", "--workers", "1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 120
    while not (kept := [key for key in keys(s3, out, "made.partial/tokens/") if key.endswith("0.json")]):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not any(key.endswith("index.json") for key in keys(s3, out, "made"))
    tokens = kept[0].replace(".json", ".train.bin")
    size = s3.client.head_object(Bucket=out, Key=tokens)["ContentLength"]
    zeros = np.zeros(size // 4, np.int32)  # to be found again, if it is not made anew
    original = s3.client.get_object(Bucket=out, Key=tokens)["Body"].read()
    s3.client.put_object(Bucket=out, Key=tokens, Body=zeros.tobytes())
    s3.client.put_object(Bucket=out, Key="made.partial/theirs", Body=b"x")
    assert main(words[1:]) == 0
    made = {key: data for key, data in objects(s3, out).items() if key.startswith("made")}
    assert made.pop("made.partial/theirs") == b"x"
    expected = shards(tree(tmp_path / "out"))
    assert shards(made, "made/").keys() == expected.keys()
    whole = b"".join(expected[f"train/shard.{number:05}.mds"] for number in range(2))
    assert original[:4000] in whole and original[:4000] not in made["made/train/shard.00000.mds"]


def keys(s3, bucket, prefix):
    return [one["Key"] for one in s3.client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]


def test_only_what_is_ours_is_replaced(s3, corpus, out, capsys):
    target = f"s3://{out}/tokens"
    s3.client.put_object(Bucket=out, Key="tokens/thesis.tex", Body=b"precious")
    assert from_store(target, "--overwrite") == 1
    assert "is not empty and was not written by prepare" in capsys.readouterr().err
    s3.client.delete_object(Bucket=out, Key="tokens/thesis.tex")
    assert from_store(target) == 0
    for one in keys(s3, out, "tokens/train/"):  # as a removal leaves it that is cut off before the record
        s3.client.delete_object(Bucket=out, Key=one)
    assert from_store(target) == 0
    assert "tokens/train/index.json" in keys(s3, out, "tokens/train/")
    s3.client.put_object(Bucket=out, Key="tokens/train/notes.txt", Body=b"precious")
    assert from_store(target, **{"seq-len": 31}) == 1
    assert "seq_len is 63, asked for 31" in capsys.readouterr().err
    assert from_store(target, "--overwrite", **{"seq-len": 31, "shard-mib": 64}) == 0
    made = objects(s3, out)
    assert made["tokens/train/notes.txt"] == b"precious"
    assert sorted(made) == [
        "tokens/prepare.json",
        "tokens/train/index.json",
        "tokens/train/notes.txt",
        "tokens/train/shard.00000.mds",
        "tokens/val/index.json",
        "tokens/val/shard.00000.mds",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["s3://none/here"], "there is no s3://none"),
        (["s3://corpora/here"], "source 's3://corpora/here' does not exist"),
        (["s3://corpora/*.txt"], "no file matches the pattern"),
        (["gs://bucket/a"], "needs the store's client: pip install 'mosaic-photon[gs]'"),
        (["ftp://host/a"], "ftp://host/a: stores that are known are s3://"),
        (["s3://corpora/saved", "--out", "az://c/x"], "needs the store's client: pip install 'mosaic-photon[az]'"),
        (
            ["s3://corpora/saved", "--out", "s3://none/x"],
            "none/x.partial': cannot list it (FileNotFoundError",
        ),
        (["s3://corpora/saved", "--out", "s3://corpora"], "name a folder in it"),
    ],
)
def test_what_cannot_be_is_one_message(corpus, small_pieces, tmp_path, capsys, words, message):
    given = ["prepare", "--tokenizer", TOKENIZER, "--out", str(tmp_path / "out"), *words]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("method", "what"),
    [("PUT", "cannot write to it"), ("DELETE", "cannot remove from it"), ("GET", "looking is not allowed")],
)
@pytest.mark.usefixtures("corpus", "small_pieces")
def test_a_right_that_lacks_is_named_before_work_begins(out, proxy, capsys, monkeypatch, method, what):
    monkeypatch.setattr("mosaic_photon.prepare.pool.Processes.run", None)
    proxy.of, proxy.fault = lambda one: one.command == method, always(status(403))
    assert from_store(f"s3://{out}/tokens") == 1
    assert what in capsys.readouterr().err
