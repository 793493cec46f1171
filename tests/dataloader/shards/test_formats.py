"""Shards of Streaming's other writers, read as Streaming reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from streaming import CSVWriter, JSONWriter, MDSWriter, StreamingDataset, TSVWriter, XSVWriter

from jobs import DATA, write_job
from mds_data import job, text_loader
from mosaic_photon.cli import main
from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.shards.index import DataError

ROWS = [
    {"text": f"line {number} ü🙂 " + "and more " * (number % 5), "id": number, "x": number / 3} for number in range(90)
]
COLUMNS = {"text": "str", "id": "int", "x": "float"}
WRITERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "json": (JSONWriter, {}),
    "json, other line ends": (JSONWriter, {"newline": "\r\n"}),
    "json, compressed": (JSONWriter, {"compression": "zstd:3", "hashes": ["xxh64"]}),
    "csv": (CSVWriter, {}),
    "csv, compressed": (CSVWriter, {"compression": "gz", "hashes": ["sha1"]}),
    "tsv": (TSVWriter, {"newline": "\r\n"}),
    "xsv": (XSVWriter, {"separator": "::"}),
}


def write(folder: Path, writer: Any = MDSWriter, columns: dict[str, str] = COLUMNS, **options: Any) -> Path:
    with writer(out=str(folder), columns=columns, size_limit=1500, **options) as mds:
        for row in ROWS:
            mds.write({name: row[name] for name in columns})
    return folder


@pytest.mark.parametrize("name", WRITERS)
def test_samples_and_batches(tmp_path: Path, build: Any, name: str) -> None:
    writer, options = WRITERS[name]
    folder = write(tmp_path / "data", writer, **options)
    stream = {"remote": str(folder), "local": str(tmp_path / "cache")}
    ours = ShardedDataset({"streams": {"data": stream}})
    theirs = StreamingDataset(local=str(folder), batch_size=1)
    assert len(ours.shards) > 3
    assert [ours.get_item(number) for number in range(90)] == [theirs[number] for number in range(90)] == ROWS
    ours.reader.close()
    ours.cache.close()
    batches = []
    for data in (folder, write(tmp_path / "mds", columns={"text": "str"})):
        loader = build(job(loader=text_loader({"local": str(data)}), local=4, batch=4))
        batches.append(next(iter(loader)))
    assert torch.equal(batches[0][0]["input"], batches[1][0]["input"])
    assert torch.equal(batches[0][1], batches[1][1])


def test_a_line_that_is_lost_is_damage(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", JSONWriter)
    shard = folder / "shard.00001.json"
    shard.write_bytes(shard.read_bytes().replace(b"}\n{", b"} {", 1))
    dataset = ShardedDataset({"local": str(folder)})
    with pytest.raises(DataError, match=r"shard.00001.json: has \d+ lines of \d+ samples"):
        [dataset.get_item(number) for number in range(90)]


@pytest.mark.parametrize(
    ("writer", "old", "new", "said"),
    [
        (JSONWriter, b'"id": 3,', b'"ie": 3,', "sample 3: the line is no json of the index's columns .KeyError"),
        (CSVWriter, b"\n3,line", b"\n3;line", "sample 3: the line is no csv of the index's columns"),
        (CSVWriter, b"\n3,line", b"\nz,line", "sample 3: column 'id' is not int, as the index says"),
    ],
)
def test_a_line_of_other_columns_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], writer: Any, old: bytes, new: bytes, said: str
) -> None:
    folder = write(tmp_path / "data", writer)
    shard = next(
        path for path in sorted(folder.iterdir()) if path.name.startswith("shard.00000") and "meta" not in path.name
    )
    assert old in shard.read_bytes()
    shard.write_bytes(shard.read_bytes().replace(old, new, 1))
    dataset = ShardedDataset({"local": str(folder)})
    with pytest.raises(DataError, match=f"stream 'data', {shard.name}, {said}"):
        dataset.get_item(3)
    config = tmp_path / "data.toml"
    config.write_text(f'[mosaic_dataloader]\nname = "text"\n[mosaic_dataloader.dataset]\nlocal = "{folder}"\n')
    assert main(["inspect", str(config), "--samples", "5"]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM: " + said.split(": ")[1].split(" .")[0] in shown and "text: line 4" in shown


def test_half_of_a_surrogate_pair_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON can spell it and no tokenizer takes it: what counts and what traces say which sample has it."""
    with JSONWriter(out=str(tmp_path / "data"), columns={"text": "str"}) as out:
        for text in ("whole", "half \ud800", *["whole"] * 6):
            out.write({"text": text})
    said = "stream 'data', shard.00000.json, sample 1: column 'text' is no text, but has half of a surrogate pair"
    with pytest.raises(DataError, match=said):
        ShardedDataset({"local": str(tmp_path / "data")}).get_item(1)
    job, data = write_job(tmp_path, tmp_path / "data", dataloader=DATA.partition("split")[0])[1::2]
    commands = (["inspect", data, "--count"], ["inspect", data, "--samples", "2"], ["trace", job, data, "--text", "ab"])
    for words in commands:
        assert main(words) == 1
        printed = capsys.readouterr()
        assert said.partition(": ")[2] in printed.out + printed.err
