"""Indexes by columns: the same shards as index.json lists, parsed once a node, whatever opens them."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mds_data import job, numbers, write_mds
from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.node import files as node_files
from mosaic_photon.dataloader.node.settings import Settings, in_force
from mosaic_photon.dataloader.shards import table as shards
from mosaic_photon.dataloader.shards.index import PACKED_VERSION, DataError, pack_index
from mosaic_photon.dataloader.shards.table import Index, Shards, read_index

PACKED = f"*.{PACKED_VERSION}"
DEAD = f"{0:064x}.{PACKED_VERSION}.4711.part"


def entry(number: int, compression: str | None = None, size: int | None = 68, **changes: Any) -> dict[str, Any]:
    """A shard as MDSWriter lists it."""
    name = f"shard.{number:05}.mds"
    raw = {"basename": name, "bytes": 1000 + number, "hashes": {"xxh64": f"{number:016x}", "sha1": f"{number:040x}"}}
    packed = {"basename": f"{name}.{compression}", "bytes": 500 + number, "hashes": {"xxh64": f"{number + 1:016x}"}}
    columns = {"column_names": ["tokens"], "column_encodings": ["ndarray:int32:17"], "column_sizes": [size]}
    zipped = {"zip_data": packed if compression else None, "compression": compression}
    return {"version": 2, "format": "mds", "samples": number % 7, "raw_data": raw, **zipped, **columns, **changes}


def index_json(folder: Path, entries: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "index.json").write_text(json.dumps({"shards": entries, "version": 2}))
    return folder


def index_of(entries: list[dict[str, Any]]) -> Index:
    return Index(pack_index(json.dumps({"shards": entries, "version": 2}).encode(), "x"))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A node folder in force, in which every index counts as large."""
    monkeypatch.setattr(shards, "SMALL_BYTES", 0)
    with in_force(Settings(node_folder=str(tmp_path / "node"))):
        yield tmp_path / "node"


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The indexes that are parsed, by their names in messages."""
    parsed: list[str] = []

    def pack(data: bytes, where: str) -> bytes:
        parsed.append(where)
        return pack_index(data, where)

    monkeypatch.setattr(shards, "pack_index", pack)
    return parsed


ENTRIES = [entry(i, compression=[None, "zstd", "gz"][i % 3], size=None if i % 5 else 68) for i in range(40)]


def test_shards_are_what_the_index_lists() -> None:
    index = index_of(ENTRIES)
    assert len(index) == 40 and len(index.kinds) == 6
    for shard, listed in zip(index, ENTRIES, strict=True):
        assert (shard.samples, shard.compression) == (listed["samples"], listed["compression"])
        assert [(c.name, c.encoding, c.size) for c in shard.columns] == [
            ("tokens", "ndarray:int32:17", listed["column_sizes"][0])
        ]
        for file, said in ((shard.raw, listed["raw_data"]), (shard.zip, listed["zip_data"])):
            assert (file and {"basename": file.basename, "bytes": file.bytes, "hashes": file.hashes}) == said
    assert index.stored_bytes.tolist() == [shard.stored.bytes for shard in index]
    assert index.max_bytes.tolist() == [shard.max_bytes for shard in index]
    assert list(index.names()) == [(shard.raw.basename, shard.zip.basename if shard.zip else "") for shard in index]
    assert [shard.samples for shard in index[5:9]] == [5, 6, 0, 1] and index[-1] == index[39]
    with pytest.raises(IndexError):
        index[40]
    assert list(pickle.loads(pickle.dumps(index))) == list(index)


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 8193])
def test_the_digest_is_that_of_checkpoints_of_before(count: int) -> None:
    """BLAKE2s of the JSON of all shards' samples, bytes and hashes, in one piece."""
    entries = [entry(number + 1) for number in range(count)]
    facts = [[e["samples"], e["raw_data"]["bytes"], sorted(e["raw_data"]["hashes"].items())] for e in entries]
    expected = hashlib.blake2s(json.dumps(facts).encode(), digest_size=8).hexdigest()
    assert index_of(entries).digest == expected


def test_the_shards_of_several_streams_one_after_another() -> None:
    streams = [index_of(ENTRIES[:7]), index_of(ENTRIES[7:8] + ENTRIES[1:2]), index_of(ENTRIES[8:])]
    joined = Shards(streams)
    flat = [shard for index in streams for shard in index]
    assert list(joined) == flat and len(joined) == 41 and joined[-1] == flat[-1] and joined[5:9] == flat[5:9]
    assert joined.samples.tolist() == [shard.samples for shard in flat]
    assert joined.largest == max(shard.max_bytes for shard in flat)
    assert [joined.kinds[kind].columns for kind in joined.kind] == [shard.columns for shard in flat]
    stream_of = [number for number, index in enumerate(streams) for _ in index]
    assert [joined.stream_of_kind[kind] for kind in joined.kind] == stream_of


def test_a_large_index_is_parsed_once_and_found_again(tmp_path: Path, node: Path, parses: list[str]) -> None:
    """By its content: in a copy of the folder too, and not after a change, be it of the same size."""
    one, other = index_json(tmp_path / "one", ENTRIES), index_json(tmp_path / "other", ENTRIES)
    first = read_index(one)
    assert list(read_index(one)) == list(read_index(other)) == list(first) == list(index_of(ENTRIES))
    assert parses == [str(one / "index.json")]
    index_json(one, [*ENTRIES[:-1], entry(38)])
    assert read_index(one)[-1] == index_of([entry(38)])[0] and len(parses) == 2
    assert len(list((node / "indexes").glob(PACKED))) == 2 and node.stat().st_mode & 0o777 == 0o700


def test_processes_that_start_together_parse_it_once(tmp_path: Path, node: Path) -> None:
    folder, log = index_json(tmp_path / "data", ENTRIES), tmp_path / "log"
    code = f"""
import sys, time
from pathlib import Path
from mosaic_photon.dataloader.shards import table as shards
from mosaic_photon.dataloader.shards.index import pack_index
from mosaic_photon.dataloader.node.settings import Settings, in_force
def pack(data, where):
    with open({str(log)!r}, "a") as log:
        log.write("parsed\\n")
    time.sleep(0.3)
    return pack_index(data, where)
shards.pack_index, shards.SMALL_BYTES = pack, 0
print("ready", flush=True)
sys.stdin.readline()
with in_force(Settings(node_folder={str(node)!r})):
    print(len(shards.read_index(Path({str(folder)!r}))))
"""
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    assert [rank.stdout.readline() for rank in ranks] == ["ready\n"] * 3
    assert [rank.communicate("go\n")[0] for rank in ranks[::-1]] == ["40\n"] * 3
    assert log.read_text() == "parsed\n"


def test_one_of_a_nodes_ranks_hashes_an_index(tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the file stays what it was; the others take its word for that very file only."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    digest = hashlib.file_digest

    def hashed(file: Any, algorithm: str) -> Any:
        with (tmp_path / "log").open("a") as log:
            log.write("hashed\n")
        return digest(file, algorithm)

    def open_in_a_process() -> None:
        rank = context.Process(target=lambda: answers.put(len(read_index(folder))))
        rank.start()
        rank.join(60)

    monkeypatch.setattr(hashlib, "file_digest", hashed)
    context = multiprocessing.get_context("fork")
    answers, folder = context.SimpleQueue(), index_json(tmp_path / "data", ENTRIES)
    for _ in range(3):
        open_in_a_process()
    assert (tmp_path / "log").read_text() == "hashed\n"
    index_json(folder, [*ENTRIES, entry(40)])
    open_in_a_process()
    assert [answers.get() for _ in range(4)] == [40, 40, 40, 41]


def test_what_is_refused_is_refused_by_everybody(tmp_path: Path, node: Path) -> None:
    """Whoever allows pickles and made the file first."""
    pickled = {"column_names": ["tokens", "extra"], "column_encodings": ["int", "pkl"], "column_sizes": [8, None]}
    folder = index_json(tmp_path / "pickled", [*ENTRIES, entry(40, **pickled)])
    assert len(read_index(folder, allow_unsafe_types=True)) == 41
    with pytest.raises(DataError, match="column 'extra' is pickled"):
        read_index(folder)
    outside = entry(1)
    outside["raw_data"]["basename"] = "../x.mds"
    folder = index_json(tmp_path / "outside", [outside])
    for _ in range(2):
        with pytest.raises(DataError, match="lies outside the dataset's folder"):
            read_index(folder)
    assert len(list((node / "indexes").iterdir())) == 2  # the lock, and the good one


def test_a_node_folder_that_is_full_is_named(tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(
        DataError, match=r"node/indexes/.*cannot keep the index of .*No space left.*mosaic\.node_folder"
    ):
        read_index(index_json(tmp_path / "data", ENTRIES))


def test_files_that_nobody_used_for_a_day_are_removed(tmp_path: Path, node: Path) -> None:
    held = read_index(index_json(tmp_path / "held", ENTRIES))
    for name in ("unused", "fresh"):
        read_index(index_json(tmp_path / name, [entry(len(name))]))
    made = {path: time.time() - path.stat().st_mtime for path in (node / "indexes").glob(PACKED)}
    assert len(made) == 3
    (node / "indexes" / DEAD).write_text("left by a process that was killed")
    old = time.time() - node_files.KEEP_S - 60
    of = {len(Index(path.read_bytes())): path for path in made}
    one_shard = sorted(path for path in made if path != of[40])
    for path in (of[40], one_shard[0]):
        os.utime(path, (old, old))
    (node / "indexes" / DEAD).touch()
    read_index(index_json(tmp_path / "new", [entry(2)]))
    left = {path.name for path in (node / "indexes").iterdir()}
    assert {of[40].name, one_shard[1].name} <= left and len(left) == 4  # with the new one and the lock
    assert held[39] == index_of(ENTRIES)[39]
    del held
    os.utime(of[40], (old, old))
    read_index(index_json(tmp_path / "newer", [entry(3)]))
    assert not of[40].exists()


def test_a_dataset_of_many_shards_takes_little_memory_where_another_process_has_parsed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 bytes a shard at most, of which 1 million shards take 0.3 GB; a Shard object alone takes more."""
    folder = index_json(tmp_path / "data", [entry(number, "zstd") for number in range(20_000)])
    with in_force(Settings(node_folder=str(tmp_path / "node"))):
        first = ShardedDataset({"local": str(folder)})
        del first
        monkeypatch.delattr(shards, "pack_index")  # it must not be needed
        tracemalloc.start()
        try:
            dataset = ShardedDataset({"local": str(folder)})
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert kept < 60 * 20_000 and peak < 300 * 20_000
    assert dataset.num_samples == sum(number % 7 for number in range(20_000))
    assert dataset.shards[19_999].raw.basename == "shard.19999.mds"


def test_a_job_reads_the_same_samples_through_the_node_folder(
    mds: Path, tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a remote: the index is fetched, checked and mapped."""
    plain = [numbers(batch) for batch, _ in zip(build(job({"local": str(mds)})), range(30), strict=False)]
    monkeypatch.setattr(shards, "SMALL_BYTES", 0)
    dataset = {"remote": str(mds), "local": str(tmp_path / "cache")}
    for _ in range(2):
        loader = build(job(dataset, node_folder=str(tmp_path / "node")))
        assert [numbers(batch) for batch, _ in zip(loader, range(30), strict=False)] == plain
    assert len(list((tmp_path / "node" / "indexes").glob(PACKED))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column_encodings": ["quux"]}, r"column 'tokens' has the encoding 'quux', which this release .* not know"),
        ({"column_encodings": ["quux:int32:17"]}, "has the encoding 'quux:int32:17'"),
        ({"column_encodings": ["ndarray:int33:17"]}, "has the encoding 'ndarray:int33:17'"),
        ({"column_encodings": ["ndarray:int32:18"]}, r"has 68 bytes a sample, but its encoding .* takes 72"),
        ({"compression": "lzma"}, "its shards have the compression 'lzma', which this release"),
        ({"samples": 2**70}, "damaged or no MDS index"),
        ({"samples": None}, "damaged or no MDS index"),
        ({"raw_data": {"basename": "a", "bytes": 2**32}}, "has 4294967296 bytes; MDS shards have less than 4 GiB"),
        ({"raw_data": {"basename": "a", "bytes": 9, "hashes": {"sha1": "a\0b"}}}, "damaged or no MDS index"),
        ({"raw_data": {"basename": "a", "bytes": 9, "hashes": "sha1"}}, "damaged or no MDS index"),
        ({"raw_data": entry(1)}, "damaged or no MDS index"),
        ({"column_sizes": [68, 68]}, "damaged or no MDS index"),
        ({"format": "parquet"}, "format 'parquet'"),
    ],
)
def test_names_and_numbers_that_nobody_knows(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    compression = "zstd" if "compression" in changes else None
    folder = index_json(tmp_path / "data", [entry(1), entry(2, compression) | changes])
    with pytest.raises(DataError, match=message) as caught:
        ShardedDataset({"local": str(folder)})
    assert "compression" in changes or str(folder) in str(caught.value)  # compressed data is unpacked elsewhere


def test_hashes_that_nobody_knows(tmp_path: Path, build: Any, caplog: pytest.LogCaptureFixture) -> None:
    """They are no use to a check, and no harm either; asked for, they are refused."""
    folder = write_mds(tmp_path / "data", 40)
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        shard["raw_data"]["hashes"] = {"blake9": "00"}
    (folder / "index.json").write_text(json.dumps(index))
    config = job({"local": str(folder)}, verify_cache=True)
    assert numbers(next(iter(build(config)))) == [0, 1]
    assert "stream 'data' has no hashes in its index" in caplog.text
    with pytest.raises(DataError, match="validate_hash: 'blake9' is no hash that this release of Streaming knows"):
        build(job({"remote": str(folder), "local": str(tmp_path / "cache"), "validate_hash": "blake9"}))


def test_entries_that_are_no_shards() -> None:
    for entries in ([1], [entry(1), {}], [entry(1), 0], [0, entry(1)], {"a": entry(1)}, None):
        with pytest.raises(DataError, match="damaged or no MDS index"):
            pack_index(json.dumps({"shards": entries, "version": 2}).encode(), "x")


@pytest.mark.parametrize(
    "changes",
    [
        {"raw_data": {"basename": "a.0.mds", "bytes": 9, "hashes": None}},
        {"raw_data": {"basename": "a.0.mds", "bytes": 9.0}},
        {"zip_data": {}, "compression": ""},
        {"samples": 1.0, "column_sizes": [68.0]},
        {"newline": None, "separator": None, "columns": None},
    ],
)
def test_entries_of_other_writers(changes: dict[str, Any]) -> None:
    """Null and {} are as good as absent, and 1.0 is a whole number."""
    plain = entry(1)
    if "raw_data" in changes:
        plain["raw_data"] = {"basename": "a.0.mds", "bytes": 9}
    other, ours = index_of([entry(1) | changes]), index_of([plain])
    assert list(other) == list(ours) and other.kinds == ours.kinds and other.digest == ours.digest


def test_files_of_other_writers() -> None:
    """A byte order mark is no damage, the version is judged before the rest, and depth is damage."""
    text = json.dumps({"shards": [entry(1)], "version": 2.0})
    assert list(Index(pack_index(text.encode("utf-8-sig"), "x"))) == list(index_of([entry(1)]))
    for newer in ({"version": 3, "shards": {"a": 1}}, {"version": 3}, {"version": "3", "shards": []}):
        with pytest.raises(DataError, match=r"MDS version '?3'? is not supported, only version 2"):
            pack_index(json.dumps(newer).encode(), "x")
    deep = b"[" * 100_000 + b"]" * 100_000
    for damaged in (b'{"version": 2, "shards": ' + deep + b"}", b'{"version": 2, "shards": [], "more": ' + deep + b"}"):
        with pytest.raises(DataError, match="damaged or no MDS index"):
            pack_index(damaged, "x")


@pytest.mark.parametrize("compression", ["br:4", "bz2", "gz:9", "snappy", "zstd", "zstd:19"])
def test_every_compression_of_streaming(tmp_path: Path, build: Any, compression: str) -> None:
    remote = write_mds(tmp_path / "remote", 40, compression=compression)
    assert numbers(next(iter(build(job({"remote": str(remote), "local": str(tmp_path / "cache")}))))) == [0, 1]


@pytest.mark.parametrize("compression", ["br:1", "bz2", "gz", "snappy", "zstd"])
def test_a_file_that_unpacks_to_more_than_the_index_says_is_given_up_at_that_size(
    tmp_path: Path, build: Any, compression: str
) -> None:
    """64 MiB of zeros in few bytes, where the index promises some hundred."""
    from streaming.base.compression import compress

    remote = write_mds(tmp_path / "remote", 16, compression=compression)
    index = json.loads((remote / "index.json").read_text())
    bomb = compress(compression, bytes(2**26))
    (remote / index["shards"][0]["zip_data"]["basename"]).write_bytes(bomb)
    index["shards"][0]["zip_data"]["bytes"] = len(bomb)
    (remote / "index.json").write_text(json.dumps(index))
    loader = build(job({"remote": str(remote), "local": str(tmp_path / "cache"), "download_retry": 0}))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_rss()
    with pytest.raises(DataError, match=rf"cannot be decompressed \({compression}\) into \d+ bytes"):
        next(iter(loader))
    assert peak_rss() - before < 30 * 2**20 + 2 * len(bomb)


def peak_rss() -> int:
    """Bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def test_a_kind_of_shard_that_lacks_the_column(tmp_path: Path, build: Any) -> None:
    """Among many that have it."""
    folder = write_mds(tmp_path / "data", 40)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1]["column_names"] = ["tokenz"]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="neither a 'tokens' nor a 'text' column"):
        build(job({"local": str(folder)}))


def test_arrays_of_a_mapped_index_are_read_only(tmp_path: Path, node: Path) -> None:
    index = read_index(index_json(tmp_path / "data", ENTRIES))
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(index.samples)[0] = 5
