"""mosaic-photon prepare on corpora as people have them: links, other compressions, bad lines, other tokenizers."""

import bz2
import glob
import gzip
import itertools
import json
import lzma
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from tokenizers import Tokenizer

import tokenizers_made
from mosaic_photon.files import locked
from mosaic_photon.prepare import read, sources
from mosaic_photon.prepare.cuts import are_harmless
from mosaic_photon.prepare.shards import TokenSequence, read_tokens
from prepare_calls import TOKENIZER, documents, prepare, samples, write_jsonl

SEPARATE = {"seq-len": 15, "val": 0}


def record(out):
    return json.loads((out / "prepare.json").read_text())


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 300)
    monkeypatch.setattr(read, "PIECE_BYTES", 300)
    monkeypatch.setattr("mosaic_photon.prepare.parts.PART_BYTES", (1000, 1000))


@pytest.mark.parametrize("source", ["corpus", "corpus/**/*.jsonl", "corpus/**"])
def test_linked_folders_are_read_and_what_is_left_out_is_named(tmp_path, monkeypatch, capsys, source):
    monkeypatch.chdir(tmp_path)
    for folder in ("corpus/.git", "corpus/тексты", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    write_jsonl(tmp_path / "corpus/one.jsonl", [f"line {number} of a text" for number in range(300)])
    write_jsonl(tmp_path / "elsewhere/two.jsonl", [f"row {number} of a text" for number in range(300)])
    write_jsonl(tmp_path / "corpus/тексты/три.jsonl", [f"слово {number}" for number in range(100)])
    (tmp_path / "corpus/.git/config").write_text("hidden")
    (tmp_path / "corpus/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus/again.jsonl").symlink_to(tmp_path / "corpus/one.jsonl")
    assert prepare(source, out=tmp_path / "out", val=0) == 0
    assert record(tmp_path / "out")["splits"]["train"]["documents"] == 700
    said = capsys.readouterr().out
    assert "left out (read already under another name): corpus/one.jsonl" in said
    if source == "corpus":
        assert "left out (hidden): corpus/.git" in said
        assert "left out (links to a folder that is read already): corpus/more/loop" in said


@pytest.mark.parametrize(
    ("pattern", "hidden"),
    [
        ("**", [".h", ".hid.txt"]),
        ("**/*.txt", [".h", ".hid.txt"]),
        ("**/train/*.txt", [".h", ".hid.txt"]),
        ("**/latest/*.txt", [".h", ".hid.txt"]),
        ("**/latest/**/*.txt", [".h", ".hid.txt"]),
        ("we?/**/train/**", [".h", ".hid.txt"]),
        ("**/[t]rain/**/deep/*", [".h", ".hid.txt"]),
        ("**/**/a.txt", [".h", ".hid.txt"]),
        ("**/circle/*/train/*", [".h", ".hid.txt"]),
        ("**/.h/*.txt", [".hid.txt"]),
        ("**/.h/**/*.txt", [".hid.txt"]),
        ("**/*/.h/*.txt", [".hid.txt"]),
        ("**/.hid.txt", [".h"]),
        ("**/.*/*.txt", []),
    ],
)
def test_a_pattern_finds_what_glob_finds(tmp_path, monkeypatch, pattern, hidden):
    """Each file, under one name of those that links give its folder; what it passes over is named, and only that."""
    monkeypatch.chdir(tmp_path)
    folders = ("", "web", "web/train", "web/train/deep", "web/train/.h", "web/train/.h/in", "web/other")
    for folder in folders:
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("a.txt", "b.json", ".hid.txt"):
            (tmp_path / folder / name).write_text(folder + name)
    (tmp_path / "web/latest").symlink_to("train")
    (tmp_path / "web/other/circle").symlink_to(tmp_path)
    left_out = sources.LeftOut(list)
    found = sources.find_sources([pattern], str(tmp_path / "out"), left_out)
    expected = {os.path.realpath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
    assert {os.path.realpath(source.path) for source in found} == expected
    assert sorted({os.path.basename(path) for path in left_out["hidden"]}) == hidden
    assert not {os.path.realpath(path) for path in left_out["hidden"]} & expected


@pytest.mark.parametrize(("source", "out"), [("link", "corpus/out"), ("corpus", "link/out"), ("link", "link/out")])
def test_what_prepare_wrote_is_no_source_by_any_name(tmp_path, source, out):
    (tmp_path / "corpus").mkdir()
    write_jsonl(tmp_path / "corpus/a.jsonl", documents(60))
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    assert prepare(tmp_path / source, out=tmp_path / out, val=0) == 0
    left_out = sources.LeftOut(list)
    (found,) = sources.find_sources([str(tmp_path / source)], str(tmp_path / out), left_out)
    assert found.path == str(tmp_path / source / "a.jsonl")
    assert {os.path.basename(path) for path in left_out["written by prepare"]} >= {"prepare.json", "index.json"}


LINES = [
    "word",
    "x = 1;",
    "the end.",
    "",
    "  indented",
    "trailing  ",
    "tab\tbed",
    "1,234",
    "日本語。",
    "don't",
    "// why",
    "\r",
]
TOKENIZERS = {
    "byte level": (tokenizers_made.byte_level, True),
    "byte level with a space before": (lambda folder: tokenizers_made.byte_level(folder, prefix=True), False),
    "SentencePiece's": (tokenizers_made.metaspace, False),
    "WordPiece": (tokenizers_made.word_piece, True),
    "words": (tokenizers_made.word_level, True),
    "Llama 3's": (tokenizers_made.tekken, True),
    "GPT-4o's": (lambda folder: tokenizers_made.tekken(folder, r"[\r\n/]*"), True),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_in_parts_gives_the_tokens_of_the_whole(tmp_path, small_pieces, name):
    make, cuttable = TOKENIZERS[name]
    folder = make(tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(7)
    text = "".join(rng.choice(LINES) + "\n" for _ in range(1200))
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    assert are_harmless(str(folder / "tokenizer.json"), tokenizer) == cuttable
    packed = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    for suffix, pack in packed.items():
        (tmp_path / f"a.txt{suffix}").write_bytes(pack(text.encode()))
        out = tmp_path / f"out{suffix}"
        options = {"val": 0, "bos-text": "", "eos-text": ""}
        assert prepare(tmp_path / f"a.txt{suffix}", out=out, tokenizer=str(folder), **options) == 0
        got = samples(out / "train").reshape(-1).tolist()
        assert got == expected[: len(got)]
        assert len(expected) - len(got) < 64
        assert record(out)["splits"]["train"]["documents"] == 1


def test_a_text_is_cut_where_that_is_harmless_only(tmp_path, small_pieces):
    file = tmp_path / "a.txt"
    file.write_text("word\n" * 100 + "x  \n" * 100 + "  y\n" * 100 + "end\n" * 100)
    (source,) = sources.find_sources([str(file)], str(tmp_path / "out"), sources.LeftOut(list))
    parts = [part for piece in sources.cut(source, cuttable=True) for part in read.read_piece(piece, "text")]
    assert "".join(part.text for part in parts) == file.read_text()
    assert [part.first for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 3
    for before, after in itertools.pairwise(parts):
        assert before.text[-2] in "dy" and after.text[0] in "we"
    (whole,) = (part for piece in sources.cut(source, cuttable=False) for part in read.read_piece(piece, "text"))
    assert whole.text == file.read_text()


@pytest.mark.parametrize("special", ["token", "text"])
def test_text_of_special_tokens(tmp_path, capsys, special):
    texts = ["a <|eos|> b", "none", "<|pad|><|eos|>"] * 20
    options = {"special-text": special, "val": 0, "bos-text": "", "eos-text": ""}
    assert prepare(write_jsonl(tmp_path / "a.jsonl", texts), out=tmp_path / "out", **options) == 0
    got = samples(tmp_path / "out/train").reshape(-1)
    tokenizer = Tokenizer.from_file(f"{TOKENIZER}/tokenizer.json")
    tokenizer.encode_special_tokens = special == "text"
    expected = [number for text in texts for number in tokenizer.encode(text, add_special_tokens=False).ids]
    assert got.tolist() == expected[: len(got)]
    assert np.isin(got, [0, 1, 2]).any() == (special == "token")
    assert record(tmp_path / "out")["special_texts"] == 60
    became = {"token": "tokens", "text": "plain text"}[special]
    assert f"60 times the text of a special token in a document became {became}" in capsys.readouterr().out


def test_a_call_says_nothing_that_is_not_asked(tmp_path):
    """Also not the tokenizers library, which warns where a process is forked that has used its threads."""
    (tmp_path / "a.txt").write_text("word and word\n" * 400_000)
    command = [sys.executable, "-m", "mosaic_photon.cli", "prepare", str(tmp_path / "a.txt"), "--val", "0"]
    command += ["--tokenizer", TOKENIZER, "--seq-len", "63", "--out", str(tmp_path / "out"), "--workers", "2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert record(tmp_path / "out")["splits"]["train"]["documents"] == 1


def test_separate_documents_are_samples_of_their_own(tmp_path, capsys):
    texts = ["short", "a little longer text", "word " * 40]
    assert prepare(write_jsonl(tmp_path / "a.jsonl", texts), "--separate", out=tmp_path / "out", **SEPARATE) == 0
    rows = samples(tmp_path / "out/train")
    tokenizer = Tokenizer.from_file(f"{TOKENIZER}/tokenizer.json")
    bos, eos, pad = (tokenizer.token_to_id(f"<|{name}|>") for name in ("bos", "eos", "pad"))
    expected = [[bos, *tokenizer.encode(text, add_special_tokens=False).ids, eos] for text in texts]
    for row, ids in zip(rows[:2], expected[:2], strict=True):
        assert row.tolist() == ids + [pad] * (16 - len(ids))
    assert rows[2:].reshape(-1)[: len(expected[2])].tolist() == expected[2]
    assert "go on in" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    folder = tokenizers_made.byte_level(tmp_path / "none/tokenizer")
    options = {**SEPARATE, "tokenizer": str(folder)}
    assert prepare(tmp_path / "a.jsonl", "--separate", out=tmp_path / "other", **options) == 1
    assert "add pad_token to its tokenizer_config.json" in capsys.readouterr().err


def test_bad_lines_are_left_out_counted_and_listed(tmp_path, capsys):
    import pyarrow
    import pyarrow.parquet

    good = [json.dumps({"text": text}) for text in documents(60)]
    bad = ["{", "[1]", '{"txt": 1}', '{"text": null}', '{"text": 3}', '{"text": "\\ud800"}', "[" * 100_000]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n".join([*good, *bad, '{"text": ""}']) + "\n")
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b'{"text": "\xff"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["first", None, "third"]}), tmp_path / "b.parquet")
    given = (tmp_path / "a.jsonl", tmp_path / "b.parquet")
    assert prepare(*given, out=tmp_path / "out", val=0) == 1
    assert "line at byte" in capsys.readouterr().err
    assert prepare(*given, out=tmp_path / "out", val=0, **{"bad-lines": "skip"}) == 1
    assert "unfinished work" in capsys.readouterr().err
    assert prepare(*given, "--overwrite", out=tmp_path / "out", val=0, **{"bad-lines": "skip"}) == 0
    made = record(tmp_path / "out")
    assert (made["bad_lines_left_out"], made["empty_documents"]) == (9, 1)
    assert made["splits"]["train"]["documents"] == 62
    listed = (tmp_path / "out/bad_lines.txt").read_text().splitlines()
    assert len(listed) == 9
    assert "row 1 of row group 0: 'text' is NoneType, not text" in listed[-1]
    assert "9 lines or rows without text" in capsys.readouterr().out


def test_a_byte_order_mark_is_no_text(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes("\ufeffword ".encode() + b"word " * 200)
    (tmp_path / "b.txt").write_text("word " * 201)
    for name in ("a", "b"):
        assert prepare(tmp_path / f"{name}.txt", out=tmp_path / name, val=0) == 0
    np.testing.assert_array_equal(samples(tmp_path / "a/train"), samples(tmp_path / "b/train"))
    (tmp_path / "c.txt").write_bytes("word".encode("utf-16"))
    assert prepare(tmp_path / "c.txt", out=tmp_path / "c", val=0) == 1
    assert "is UTF-16 text: convert it" in capsys.readouterr().err


def test_a_lock_that_its_holder_removes_has_one_owner(tmp_path):
    """One call waits for the lock as its holder removes it; a third comes later."""
    path, begun, leave, inside = tmp_path / "lock", threading.Event(), threading.Event(), threading.Event()

    def wait():
        begun.set()
        with locked(path, remove=True):
            inside.set()
            leave.wait(30)

    waiter = threading.Thread(target=wait)
    with locked(path, remove=True) as held:
        assert held
        waiter.start()
        begun.wait(30)
        while len([fd for fd in os.listdir("/proc/self/fd") if _is_open(fd, path)]) < 2:
            pass
    assert inside.wait(30)
    with locked(path, wait=False, remove=True) as held:
        assert not held
    leave.set()
    waiter.join()
    assert not path.exists()


def _is_open(fd, path):
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(path)
    except OSError:
        return False


def test_a_shards_call_carries_what_it_needs(tmp_path):
    sizes, files = [0, 5, 0, 7, 3, 11], []
    everything = np.arange(sum(sizes), dtype=np.int32)
    for number, part in enumerate(np.split(everything, np.cumsum(sizes)[:-1])):
        files.append(str(tmp_path / f"{number}.bin"))
        part.tofile(files[-1])
    sequence = TokenSequence(files, sizes)
    for start in range(26):
        for stop in range(start + 1, 27):
            assert read_tokens(sequence.stretches(start, stop)).tolist() == everything[start:stop].tolist()
    many = TokenSequence([f"/data/tokens/{number}.bin" for number in range(32_000)], [8_000_000] * 32_000)
    assert len(pickle.dumps(many.stretches(10**11, 10**11 + 16_000_000))) < 1000
