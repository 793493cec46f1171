"""`mosaic-photon inspect --count`: what samples hold, held to what was written; its page and what it refuses."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import MDSWriter
from tokenizers import Tokenizer

import jobs
from mosaic_photon.cli import main
from mosaic_photon.dataloader.count import Hashes

TEXT = [f"def f{number}(x):\n    return x + {number}\n" * (1 + number % 9) for number in range(60)]
CONFIG = """
[mosaic_dataloader]
name = "text"
[mosaic_dataloader.dataset]
eos_token_id = {eos}
[mosaic_dataloader.dataset.streams.one]
local = "{folder}/one"
[mosaic_dataloader.dataset.streams.two]
local = "{folder}/two"
[mosaic_eval_dataloaders.texts]
name = "text"
[mosaic_eval_dataloaders.texts.dataset]
local = "{folder}/texts"
"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(jobs.TOKENIZER / "tokenizer.json"))


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer) -> dict[str, np.ndarray[Any, Any]]:
    """Two streams: padded text in rows of 40, each fifth one twice; the first has an end token in each row."""
    eos, pad = (tokenizer.token_to_id(f"<|{role}|>") for role in ("eos", "pad"))
    ids = np.array(tokenizer.encode("".join(TEXT * 40), add_special_tokens=False).ids)
    one = ids[: 200 * 40].reshape(200, 40).copy()
    whole = np.array([one for one in range(20, 2000) if "\ufffd" not in tokenizer.decode([one])])
    one[:, 0], one[:, 7], one[:, 30:] = whole[:200], eos, pad
    two = whole[ids[: 100 * 40].reshape(100, 40) % len(whole)]
    two[:, 0] = whole[200:300]
    return {"one": np.concatenate([one, one[::5]]), "two": np.concatenate([two, one[:10]])}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, rows: Any, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("counted")
    for name, found in rows.items():
        with MDSWriter(out=str(folder / name), columns={"tokens": "ndarray:int32:40"}, size_limit=1000) as writer:
            for row in found:
                writer.write({"tokens": row.astype(np.int32)})
    with MDSWriter(out=str(folder / "texts"), columns={"text": "str"}) as writer:
        for text in TEXT:
            writer.write({"text": text})
    (folder / "data.toml").write_text(CONFIG.format(folder=folder, eos=tokenizer.token_to_id("<|eos|>")))
    return folder / "data.toml"


def counted(config: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert main(["inspect", str(config), "--count", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)["counts"]
    return {f"{loader} {stream['name']}": stream for loader, streams in found.items() for stream in streams}


@pytest.fixture(scope="module")
def known(tokenizer: Tokenizer, rows: dict[str, np.ndarray[Any, Any]]) -> dict[str, dict[str, float | None]]:
    """The same by Python's own counting and the tokenizer's own decoding."""
    eos, pad = (tokenizer.token_to_id(f"<|{role}|>") for role in ("eos", "pad"))
    expected = {}
    for name, found in {**rows, "all": np.concatenate(list(rows.values()))}.items():
        ids = [int(one) for row in found for one in row if one != pad]
        often = Counter(ids)
        text = sum(len(tokenizer.decode([one]).encode()) * n for one, n in often.items() if one != eos)
        expected[name] = {
            "samples": len(found),
            "tokens": len(ids),
            "documents": often[eos],
            "bytes_per_token": text / (len(ids) - often[eos]),
            "used": len(often),
            "duplicates": 1 - len({tuple(row) for row in found.tolist()}) / len(found),
            "padding": 1 - len(ids) / found.size,
            "special": often[eos] / len(ids),
        }
    return expected


def test_the_counts_are_those_of_what_was_written(config: Path, known: Any, capsys: Any, tokenizer: Tokenizer) -> None:
    found = counted(config, capsys, "--all", "--tokenizer", str(jobs.TOKENIZER))
    assert list(found) == ["train one", "train two", "train all", "eval/texts data"]
    for name, expected in known.items():
        stream = found[f"train {name}"]
        assert stream["read"] == stream["samples"] and stream["duplicates_exact"]
        assert {key: stream[key] for key in expected} == pytest.approx(expected, rel=1e-3), name
    texts = found["eval/texts data"]
    ids = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in TEXT]
    assert (texts["documents"], texts["tokens"]) == (60, sum(ids))
    assert texts["bytes_per_token"] == pytest.approx(sum(map(len, TEXT)) / sum(ids))


def test_without_a_tokenizer_what_it_tells_is_unknown(config: Path, capsys: Any, known: Any) -> None:
    one = counted(config, capsys)["train one"]
    assert one["bytes_per_token"] is one["padding"] is one["special"] is one["vocabulary"] is None
    assert one["documents"] == known["one"]["documents"] and one["duplicates"] == known["one"]["duplicates"]


def test_a_part_is_spread_over_the_shards_and_stands_for_all(
    config: Path, capsys: Any, known: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("mosaic_photon.dataloader.count.SHARDS", 8)
    monkeypatch.setattr("mosaic_photon.dataloader.count.SAMPLES", 24)
    one = counted(config, capsys)["train one"]
    assert 22 <= one["read"] <= 24 and one["samples"] == known["one"]["samples"]
    assert one["tokens"] == one["samples"] * 40  # no tokenizer: padding is not known
    assert one["documents"] == known["one"]["documents"]  # one in each sample


def test_the_vocabularys_tail(tmp_path: Path, capsys: Any) -> None:
    """1,000 tokens ten times, and 500 once."""
    row = np.concatenate([np.repeat(np.arange(1000), 10), np.arange(1000, 1500)]).astype(np.int32)
    with MDSWriter(out=str(tmp_path / "shards"), columns={"tokens": "ndarray:int32"}) as writer:
        writer.write({"tokens": row})
    (tmp_path / "data.toml").write_text(
        f'[mosaic_dataloader]\nname = "text"\n[mosaic_dataloader.dataset]\nlocal = "{tmp_path}/shards"\n'
    )
    found = counted(tmp_path / "data.toml", capsys)["train data"]
    assert found["used"] == 1500 and found["beyond_common"] == pytest.approx(500 / 10500)
    assert found["usage"][0] == [1, pytest.approx(10 / 10500)] and found["usage"][-1] == [1500, 1.0]
    assert found["documents"] is None


def test_hashes_are_bounded_and_tell_the_share_all_the_same() -> None:
    """A fifth of the samples are copies, in whatever order and parts they come."""
    different = np.random.default_rng(0).integers(0, 1 << 63, 80_000, dtype=np.uint64)
    samples = np.random.default_rng(1).permutation(np.concatenate([different, different[:20_000]]))
    whole = Hashes(4096)
    for part in np.array_split(samples, 7):
        one = Hashes(2048)
        for some in np.array_split(part, 50):
            one.add(some)
            assert len(one.values) <= 2048
        whole.merge(one)
    assert len(whole.values) <= 4096 and whole.bits > 0
    assert whole.share() == pytest.approx(0.2, abs=0.03)  # of 2,500 kept samples: five standard deviations
    exact = Hashes(1 << 20)
    exact.add(samples)
    assert exact.bits == 0 and exact.share() == pytest.approx(0.2)


def test_the_page_needs_no_network_and_says_what_the_table_says(config: Path, capsys: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ["inspect", str(config), "--count", "--tokenizer", str(jobs.TOKENIZER), "--out", str(page)]
    assert main(words) == 0
    printed, text = capsys.readouterr().out, page.read_text()
    assert f"wrote {page}" in printed and "eval/texts: what its samples hold" in printed
    assert "default-src 'none'" in text and "://" not in re.sub("<script.*?</script>", "", text, flags=re.DOTALL)
    for shown in ("16.67%", "eval/texts", "Use of the vocabulary"):
        assert shown in text
    assert "16.67%" in printed
    assert main(words) == 0  # its own page is written anew
    page.write_text("mine")
    assert main(words) == 1 and page.read_text() == "mine"
    assert "was not written by this command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--all"], "--all and --out say how to --count; add that"),
        (["--count", "--out", "page.txt"], "must be a file named like PAGE.html"),
    ],
)
def test_mistakes(config: Path, words: list[str], says: str, capsys: Any) -> None:
    assert main(["inspect", str(config), *words]) == 1
    assert says in capsys.readouterr().err


def test_a_sample_that_is_none_is_named(tmp_path: Path, capsys: Any) -> None:
    with MDSWriter(out=str(tmp_path / "shards"), columns={"tokens": "ndarray:int32:8"}) as writer:
        writer.write({"tokens": np.full(8, 1 << 30, np.int32)})
    (tmp_path / "data.toml").write_text(
        f'[mosaic_dataloader]\nname = "text"\n[mosaic_dataloader.dataset]\nlocal = "{tmp_path}/shards"\n'
    )
    assert main(["inspect", str(tmp_path / "data.toml"), "--count"]) == 1
    said = capsys.readouterr().err
    assert "sample 0: has token ids outside the vocabulary" in said and "Traceback" not in said
