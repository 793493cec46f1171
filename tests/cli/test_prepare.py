"""mosaic-photon prepare: what it writes, and that it can be stopped and resumed."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import zstandard

from jobs import slow_imports
from mosaic_photon.cli import main
from mosaic_photon.prepare import read, sources
from mosaic_photon.prepare.sources import stdlib_files
from mosaic_photon.prepare.tokenization import split_of
from prepare_calls import SEQ_LEN, TOKENIZER, documents, prepare, samples, tree, write_jsonl

COMMAND = str(Path(sys.executable).with_name("mosaic-photon"))


def concat_tokens(texts, bos="<|bos|>", eos="<|eos|>"):
    """llm-foundry's own conversion of the same documents."""
    from llmfoundry.data.data import ConcatTokensDataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    rows = ConcatTokensDataset([{"text": text} for text in texts], tokenizer, SEQ_LEN + 1, bos, eos, False)
    return np.stack([row["tokens"] for row in rows])


def by_split(texts, val=0.2):
    return {split: [text for text in texts if split_of(text.encode(), val) == split] for split in ("train", "val")}


@pytest.fixture
def small_pieces(monkeypatch):
    """Cut files into pieces and work into units as small as only huge inputs are otherwise."""
    monkeypatch.setattr(sources, "PIECE_BYTES", 700)
    monkeypatch.setattr(read, "PIECE_BYTES", 700)
    monkeypatch.setattr("mosaic_photon.prepare.parts.PART_BYTES", (2000, 2000))


def test_samples_equal_llm_foundrys(tmp_path, small_pieces):
    texts = documents(300)
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    assert prepare(source, out=tmp_path / "out", **{"shard-mib": 1}) == 0
    for split, own in by_split(texts).items():
        np.testing.assert_array_equal(samples(tmp_path / "out" / split), concat_tokens(own))
    index = json.loads((tmp_path / "out/train/index.json").read_text())
    assert index["shards"][0]["column_encodings"] == [f"ndarray:int32:{SEQ_LEN + 1}"]
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["prepare.json", "train", "val"]


def test_other_tokens_around_documents(tmp_path):
    texts = documents(40)
    source = write_jsonl(tmp_path / "a.jsonl", texts, key="content")
    options = {"bos-text": "", "eos-text": "<|pad|>", "text-key": "content", "val": 0}
    assert prepare(source, out=tmp_path / "out", **options) == 0
    np.testing.assert_array_equal(samples(tmp_path / "out/train"), concat_tokens(texts, "", "<|pad|>"))
    assert not (tmp_path / "out/val").exists()


def test_every_kind_of_source_gives_the_same_samples(tmp_path, small_pieces):
    import datasets
    import pyarrow
    import pyarrow.parquet

    texts = documents(120, longest=50)  # each text file is one piece
    plain = write_jsonl(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    dataset = datasets.Dataset.from_dict({"text": texts})
    dataset.save_to_disk(tmp_path / "saved")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "d.parquet", row_group_size=50)
    (tmp_path / "arrow").mkdir()
    for file in (tmp_path / "saved").glob("*.arrow"):
        shutil.copy(file, tmp_path / "arrow")
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"{number:03}.txt").write_text(text)
    given = ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "saved", "d.parquet", "arrow", "texts", "te*/[0-9]*.txt"]
    expected = {split: concat_tokens(own) for split, own in by_split(texts).items()}
    for number, source in enumerate(given):
        assert prepare(tmp_path / source, out=tmp_path / f"out{number}") == 0
        for split in ("train", "val"):
            np.testing.assert_array_equal(samples(tmp_path / f"out{number}" / split), expected[split], source)


@pytest.mark.parametrize("codec", ["", "gz", "zst"])
def test_a_large_text_file_is_one_document(tmp_path, small_pieces, codec):
    text = "\n".join(documents(60))
    data = {"": bytes, "gz": gzip.compress, "zst": zstandard.compress}[codec](text.encode())
    file = tmp_path / (f"a.txt.{codec}" if codec else "a.txt")
    file.write_bytes(data)
    assert prepare(file, out=tmp_path / "out", val=0) == 0
    got = samples(tmp_path / "out/train").reshape(-1)
    from tokenizers import Tokenizer

    decoded = Tokenizer.from_file(f"{TOKENIZER}/tokenizer.json").decode(got.tolist())
    assert text.startswith(decoded.rstrip("\ufffd"))  # the last character may be cut
    bos, eos = 0, 1
    assert got[0] == bos
    assert not np.isin(got[1:], [bos, eos]).any()


def test_bytes_do_not_depend_on_workers(tmp_path, small_pieces):
    source = write_jsonl(tmp_path / "a.jsonl", documents(100))
    prepare(source, out=tmp_path / "one", workers=1, compression="zstd:3", hashes="sha1")
    prepare(source, out=tmp_path / "four", workers=4, compression="zstd:3", hashes="sha1")
    assert tree(tmp_path / "one") == tree(tmp_path / "four")
    (entry,) = json.loads((tmp_path / "one/train/index.json").read_text())["shards"]
    assert entry["zip_data"]["basename"] == "shard.00000.mds.zstd"
    assert list(entry["zip_data"]["hashes"]) == ["sha1"]


def test_many_shards_hold_the_samples_in_order(tmp_path):
    texts = documents(3000)
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    assert prepare(source, out=tmp_path / "out", **{"shard-mib": 1}, val=0) == 0
    index = json.loads((tmp_path / "out/train/index.json").read_text())
    names = [entry["raw_data"]["basename"] for entry in index["shards"]]
    assert names == [f"shard.{number:05}.mds" for number in range(len(names))]
    assert len(names) > 2
    np.testing.assert_array_equal(samples(tmp_path / "out/train"), concat_tokens(texts))


def test_second_call_does_nothing_and_other_options_are_refused(tmp_path, capsys):
    source = write_jsonl(tmp_path / "a.jsonl", documents(100))
    assert prepare(source, out=tmp_path / "out") == 0
    before = tree(tmp_path / "out")
    assert prepare(source, out=tmp_path / "out") == 0
    assert "already prepared" in capsys.readouterr().out

    assert prepare(source, out=tmp_path / "out", **{"seq-len": 31}) == 1
    assert "seq_len is 63, asked for 31" in capsys.readouterr().err
    os.utime(source, ns=(1, 1))
    assert prepare(source, out=tmp_path / "out") == 1
    assert "source files" in capsys.readouterr().err
    assert tree(tmp_path / "out") == before

    words = ["prepare", str(source), "--out", str(tmp_path / "out"), "--tokenizer", TOKENIZER]
    assert main([*words, "--seq-len", "31", "--val", "0.2", "--overwrite"]) == 0
    assert samples(tmp_path / "out/train").shape[1] == 32
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "out"]


def command(out, *words):
    base = [COMMAND, "prepare", "--out", str(out), "--tokenizer", TOKENIZER]
    return [*base, "--seq-len", str(SEQ_LEN), "--workers", "2", *words]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_work_is_resumed(tmp_path, number):
    """A stop in the first stage; the second call keeps what was finished and ends as if never stopped."""
    partial = tmp_path / "out.partial"
    texts = [Path(file).read_text("utf-8") for file in stdlib_files()[:250]]
    sources = [str(write_jsonl(tmp_path / f"{part}.jsonl", texts[part::4])) for part in range(4)]
    words = command(tmp_path / "out", *sources, "--workers", "1")
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    wait_for(lambda: any(partial.glob("tokens/*.json")))
    workers = psutil.Process(process.pid).children(recursive=True)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches the workers, too
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in output
    assert ("same command goes on" in output) == (number != signal.SIGKILL)
    wait_for(lambda: not any(psutil.pid_exists(worker.pid) for worker in workers), 5)
    assert not (tmp_path / "out").exists()

    kept = sorted(partial.glob("tokens/*.json"))
    assert 0 < len(kept) < 4
    tokens = kept[0].with_suffix("").with_suffix(".train.bin")
    marked = np.zeros(tokens.stat().st_size // 4, np.int32)  # to be found again, if it is not made anew
    marked.tofile(tokens)
    assert main(words[1:]) == 0
    got = samples(tmp_path / "out/train").reshape(-1)
    assert not got[: len(marked)].any()
    assert got[len(marked) :].any()
    assert sorted(os.listdir(tmp_path)) == [*map(os.path.basename, sources), "out"]


def test_standard_library_is_the_source_when_none_is_named(tmp_path):
    assert main(command(tmp_path / "out")[1:]) == 0
    texts = [Path(file).read_bytes().decode() for file in stdlib_files()]
    own = by_split([text for text in texts if text], val=0.02)
    np.testing.assert_array_equal(samples(tmp_path / "out/val"), concat_tokens(own["val"]))
    record = json.loads((tmp_path / "out/prepare.json").read_text())
    assert record["splits"]["train"]["tokens"] > 2_000_000
    assert record["splits"]["train"]["documents"] == len(own["train"])


def test_split_is_a_fair_draw_by_text_alone():
    texts = [f"text {number}".encode() for number in range(5000)]
    for val in (0.02, 0.5):
        drawn = [split_of(text, val) == "val" for text in texts]
        assert sum(drawn) == pytest.approx(5000 * val, abs=4 * (5000 * val * (1 - val)) ** 0.5)
        assert drawn == [split_of(text, val) == "val" for text in texts]
    more = {text for text in texts if split_of(text, 0.5) == "val"}
    assert {text for text in texts if split_of(text, 0.02) == "val"} <= more  # a larger share keeps what was in val


def test_killed_between_the_last_steps(tmp_path):
    """The folder is whole but not yet in place: the next call puts it there."""
    source = write_jsonl(tmp_path / "a.jsonl", documents(50))
    prepare(source, out=tmp_path / "out")
    expected = tree(tmp_path / "out")
    os.rename(tmp_path / "out", tmp_path / "out.partial")
    assert prepare(source, out=tmp_path / "out") == 0
    assert tree(tmp_path / "out") == expected


def test_debug_tokenizer():
    """Both libraries that read it agree, and no special token stands for two things."""
    from torchtitan.components.tokenizer import HuggingFaceTokenizer
    from transformers import AutoTokenizer

    tokenizer, titan = AutoTokenizer.from_pretrained(TOKENIZER), HuggingFaceTokenizer(TOKENIZER)
    assert len(tokenizer) == titan.get_vocab_size() == 2048
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert (titan.bos_id, titan.eos_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    text = "def naïve(self):\n    return '日本語 🙂'\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert titan.encode(text) == tokenizer(text).input_ids


def test_tokenizer_script_gives_the_same_every_time(tmp_path):
    script = str(Path(TOKENIZER).with_name("make_tokenizer.py"))
    for name in ("one", "two"):
        subprocess.run([sys.executable, script, str(tmp_path / name)], check=True)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert tree(tmp_path / "one").keys() == tree(Path(TOKENIZER)).keys()


def test_help_imports_nothing_slow():
    command = [sys.executable, "-X", "importtime", "-m", "mosaic_photon.cli", "prepare", "--help"]
    assert slow_imports(subprocess.run(command, check=True, capture_output=True, text=True).stderr) == set()
