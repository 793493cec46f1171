"""mosaic-photon prepare: what it says of bad input, and that it touches no folder but its own."""

import gzip
import os
import shutil
import signal
from pathlib import Path

import pytest

from mosaic_photon.cli import main
from prepare_calls import TOKENIZER, documents, prepare, tree, write_jsonl

BAD = {
    "empty.txt": (b"", "no text in"),
    "binary.bin": (b"abc\0def", "binary file (null byte at 3)"),
    "latin.txt": ("über".encode("latin-1"), "not UTF-8 text (byte 0 is 0xfc)"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "line at byte 14: not JSON"),
    "list.jsonl": (b"[1, 2]\n", "one JSON object a line"),
    "key.jsonl": (b'{"txt": "a"}\n', "Did you mean 'txt'?"),
    "number.jsonl": (b'{"text": 3}\n', "'text' is int, not text"),
    "surrogate.jsonl": (b'{"text": "\\ud800"}\n', "surrogate"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 1000)[:-20], "cannot read"),
    "cut.jsonl.zst": (b"not zstandard at all", "cannot read"),
    "bad.parquet": (b"PAR1 not really", "bad.parquet: Parquet magic bytes not found"),
    "bad.arrow": (b"not arrow", "not an Arrow file"),
    "short.jsonl": (b'{"text": "a"}\n', "less than one sample of 64"),
    "text.txt": (b"a document", "one document, which cannot be split"),
}


def test_damage_inside_a_columnar_file_names_it(tmp_path, capsys):
    import datasets
    import pyarrow
    import pyarrow.parquet

    texts = documents(300)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for source, file in (
        ("a.parquet", tmp_path / "a.parquet"),
        ("saved", arrow),
        ("saved", tmp_path / "saved/state.json"),
    ):
        whole = file.read_bytes()
        file.write_bytes(whole[:40] + b"\xff" * 40 + whole[80:])
        assert prepare(tmp_path / source, out=tmp_path / file.stem, workers=1) == 1
        message = capsys.readouterr().err
        assert f"cannot read {tmp_path / source}: " in message
        assert ".." not in message
        file.write_bytes(whole)


def test_a_parquet_file_without_a_byte_is_damaged(tmp_path, capsys):
    (tmp_path / "a.parquet").write_bytes(b"")
    given = [write_jsonl(tmp_path / "b.jsonl", documents(30)), tmp_path / "a.parquet"]
    assert prepare(*given, out=tmp_path / "out", val=0) == 1
    assert f"cannot read {tmp_path / 'a.parquet'}: " in capsys.readouterr().err


@pytest.mark.parametrize("name", BAD)
def test_bad_source(tmp_path, capsys, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    val = 0.2 if name == "text.txt" else 0
    assert prepare(tmp_path / name, out=tmp_path / "out", workers=1, val=val) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "/nowhere"}, "tokenizer folder '/nowhere' does not exist"),
        ({"tokenizer": "."}, "no tokenizer.json"),
        ({"tokenizer": "malformed"}, "cannot read malformed/tokenizer_config.json (Expecting value: line 1"),
        ({"tokenizer": "list"}, "list/tokenizer_config.json holds no JSON object, but list: save the tokenizer again"),
        ({"seq-len": 0}, "--seq-len is 0, must be at least 1"),
        ({"val": 1.5}, "--val is 1.5"),
        ({"compression": "zstt"}, "Did you mean 'zstd'?"),
        ({"hashes": "sha11"}, "Did you mean 'sha1'?"),
        ({"eos-text": "<|end|>"}, "is not one token of the tokenizer"),
        ({"out": "ftp://host/data"}, "ftp://host/data: stores that are known are s3://"),
        ({"out": "/proc/data"}, "/proc/data cannot be written: [Errno"),  # which makes no files, as a read-only disk
        ({"shard-mib": 0}, "--shard-mib is 0"),
    ],
)
def test_bad_option(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    for name, content in (("malformed", ""), ("list", "[]")):
        shutil.copytree(TOKENIZER, name)
        Path(name, "tokenizer_config.json").write_text(content)
    source = write_jsonl(tmp_path / "a.jsonl", documents(3))
    assert prepare(source, **({"out": tmp_path / "out"} | options)) == 1
    assert message in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "list", "malformed"]


def test_missing_sources(tmp_path, capsys):
    for source, message in (("none.txt", "does not exist"), ("*.txt", "no file matches")):
        assert prepare(tmp_path / source, out=tmp_path / "out") == 1
        assert message in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe")
    assert prepare(tmp_path, out=tmp_path / "out") == 1
    assert "is not a file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out", "out.partial", "out.replaced"])
def test_a_folder_of_someone_else_is_left_alone(tmp_path, capsys, name):
    source = write_jsonl(tmp_path / "a.jsonl", documents(50))
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("precious")
    words = ["prepare", str(source), "--out", str(tmp_path / "out"), "--tokenizer", TOKENIZER, "--overwrite"]
    assert main(words) == 1
    assert f"{name} exists and was not written by prepare" in capsys.readouterr().err
    assert tree(tmp_path) == {"a.jsonl": source.read_bytes(), f"{name}/thesis.tex": b"precious"}


def test_a_backup_is_left_alone(tmp_path):
    """Also one that prepare did write: the user kept it under a name that is not ours."""
    source = write_jsonl(tmp_path / "a.jsonl", documents(50))
    prepare(source, out=tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "out.old")
    expected = tree(tmp_path / "out.old")
    os.utime(source, ns=(1, 1))
    words = ["prepare", str(source), "--out", str(tmp_path / "out"), "--tokenizer", TOKENIZER, "--overwrite"]
    assert main([*words, "--seq-len", "31", "--val", "0.2"]) == 0
    assert tree(tmp_path / "out.old") == expected
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "out", "out.old"]


@pytest.mark.parametrize("name", ["out", "out.partial", "out.replaced"])
@pytest.mark.parametrize("record", ["{]", "[]"])
def test_malformed_record(tmp_path, capsys, name, record):
    source = write_jsonl(tmp_path / "a.jsonl", documents(50))
    (tmp_path / name).mkdir()
    (tmp_path / name / "prepare.json").write_text(record)
    assert prepare(source, out=tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert f"{name}/prepare.json" in message
    assert "remove the folder, or choose another --out" in message
    assert (tmp_path / name / "prepare.json").read_text() == record


def test_what_killed_calls_leave_is_cleared_away(tmp_path):
    """Killed as it wrote its first record; as it replaced an older result; as it removed that."""
    source = write_jsonl(tmp_path / "a.jsonl", documents(50))
    prepare(source, out=tmp_path / "expected")
    expected = tree(tmp_path / "expected")
    for left in (
        "out.partial/.mosaic_photon.prepare.json.12.part",
        "out.replaced/prepare.json",
        "out.replaced/train/index.json",
    ):
        (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / left).write_text("{}")
    assert prepare(source, out=tmp_path / "out") == 0
    assert tree(tmp_path / "out") == expected
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "expected", "out"]


def test_a_half_removed_folder_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    """A finished result that was not yet in place; another call with --overwrite was stopped while it removed that."""
    source = write_jsonl(tmp_path / "a.jsonl", documents(50))
    prepare(source, out=tmp_path / "out")
    expected = tree(tmp_path / "out")
    os.rename(tmp_path / "out", tmp_path / "out.partial")

    def stopped(folder, ignore_errors, rmtree=shutil.rmtree):
        rmtree(folder, ignore_errors)
        if folder.name == "train":
            raise KeyboardInterrupt

    words = ["prepare", str(source), "--out", str(tmp_path / "out"), "--tokenizer", TOKENIZER, "--overwrite"]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stopped)
        assert main([*words, "--seq-len", "31", "--val", "0.2"]) == 128 + signal.SIGINT
    assert prepare(source, out=tmp_path / "out") == 0
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize("source", ["corpus", "corpus/**"])
def test_out_below_a_source_is_no_source(tmp_path, capsys, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    write_jsonl(tmp_path / "corpus/a.jsonl", documents(50))
    assert prepare(source, out="corpus/mds") == 0
    expected = tree(tmp_path / "corpus/mds")
    capsys.readouterr()
    assert prepare(source, out="corpus/mds") == 0
    assert "already prepared" in capsys.readouterr().out
    os.rename("corpus/mds", "corpus/mds.partial")
    assert prepare(source, out="corpus/mds") == 0
    assert tree(tmp_path / "corpus/mds") == expected
