"""A cache is known by what it holds: never old data under a new remote's name, never a mixture."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataloader.test_own_data import SAMPLES, listing, open_dataset, read_all, tokens
from mds_data import write_mds
from mosaic_photon.dataloader.node.once import once_a_run
from mosaic_photon.dataloader.node.settings import Settings, in_force
from mosaic_photon.dataloader.shards import cache_folder
from mosaic_photon.dataloader.shards.index import DataError
from s3_proxy import Proxy

HASHES = [pytest.param(["xxh64"], id="hashes"), pytest.param([], id="no-hashes")]


def write(folder: Path, start: int, samples: int = SAMPLES, hashes: Any = ("xxh64",)) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return write_mds(folder, samples, start=start, shard_samples=8, hashes=list(hashes))


def read(node: Path, remote: Any, cache: Path, **arguments: Any) -> list[list[int]]:
    stream = {"remote": str(remote), "local": str(cache), "download_retry": 0, **arguments}
    return read_all(open_dataset(node, {"a": stream}))


@pytest.mark.parametrize("hashes", HASHES)
def test_the_cache_of_another_remote_is_refused(tmp_path: Path, hashes: Any) -> None:
    """Also if the indexes are equal, where sizes alone tell the shards apart."""
    one, two, cache = write(tmp_path / "A", 0, hashes=hashes), write(tmp_path / "B", 500, hashes=hashes), tmp_path / "c"
    assert read(tmp_path, one, cache) == tokens()
    before = listing(cache)
    for _ in range(2):
        with pytest.raises(DataError, match=rf"c: a cache of {one}, but stream 'a' names {two}, whose"):
            read(tmp_path, two, cache)
        assert listing(cache) == before
        (cache / "shard.00000.mds").unlink(missing_ok=True)  # nor a mixture
        before = listing(cache)
    assert read(tmp_path, one, cache) == tokens()


def test_two_remotes_cannot_share_a_cache_by_an_alias(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    streams = {
        name: {"remote": str(write(tmp_path / name, start)), "local": str(tmp_path / folder)}
        for name, start, folder in (("A", 0, "cache"), ("B", 500, "link"))
    }
    with pytest.raises(DataError, match=r"a cache of .*A, but stream 'B' names .*B"):
        open_dataset(tmp_path / "node", streams)
    assert not list((tmp_path / "cache").glob("shard*"))


@pytest.mark.parametrize("hashes", HASHES)
def test_a_remote_that_has_grown_is_noticed_at_the_next_start(tmp_path: Path, hashes: Any) -> None:
    remote, cache = write(tmp_path / "A", 0, hashes=hashes), tmp_path / "cache"
    read(tmp_path, remote, cache)
    before = listing(cache)
    write(remote, 0, SAMPLES + 24, hashes=hashes)
    assert read(tmp_path, remote, cache) == tokens(0, SAMPLES + 24)
    after, shards = listing(cache), sorted(name for name in before if name.startswith("shard"))
    same = [name for name in shards if after[name] == before[name]]
    assert same == (shards[:-1] if hashes else [])  # the last has more samples now


@pytest.mark.parametrize("hashes", HASHES)
def test_a_remote_that_was_written_anew_is_noticed(tmp_path: Path, hashes: Any) -> None:
    """Other samples of the same sizes, so that without hashes the index stays the same to the byte."""
    remote, cache = write(tmp_path / "A", 0, hashes=hashes), tmp_path / "cache"
    read(tmp_path, remote, cache)
    write(remote, 500, hashes=hashes)
    assert read(tmp_path, remote, cache) == tokens(500)


@pytest.mark.parametrize(
    ("fault", "end", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DataError, "free some space"),
        (AttributeError("a fault of ours"), AttributeError, "a fault of ours"),
    ],
    ids=["no room", "a fault of ours"],
)
def test_what_is_no_fault_of_the_remotes_ends_the_refresh_of_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, end: type[Exception], message: str
) -> None:
    """The remote has changed and is there: going on would be training on the data of before."""
    remote, cache = write(tmp_path / "A", 0), tmp_path / "cache"
    read(tmp_path, remote, cache)
    write(remote, 500)

    def fail(*arguments: Any) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(cache_folder, "download", fail)
        with pytest.raises(end, match=message):
            read(tmp_path, remote, cache)
    assert read(tmp_path, remote, cache) == tokens(500)


def test_compressed_data_written_anew_is_unpacked_anew(tmp_path: Path) -> None:
    for start in (0, 500):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        write_mds(tmp_path / "data", SAMPLES, start=start, shard_samples=8, compression="zstd", hashes=[])
        stream = {"a": {"local": str(tmp_path / "data")}}
        assert read_all(open_dataset(tmp_path / "node", stream)) == tokens(start)


def test_a_cache_that_a_running_job_reads_does_not_change_under_it(tmp_path: Path) -> None:
    remote, cache = write(tmp_path / "A", 0), tmp_path / "cache"
    stream = {"a": {"remote": str(remote), "local": str(cache)}}
    running = open_dataset(tmp_path / "node", stream)
    running.get_item(0)
    write(remote, 500)
    with pytest.raises(DataError, match=r"has changed, and another job on this node reads this cache"):
        open_dataset(tmp_path / "node", stream)
    assert running.get_item(0)["tokens"].tolist() == tokens()[0]
    del running
    assert read(tmp_path / "node", remote, cache) == tokens(500)


def test_a_ledger_of_another_index_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """What a worker process that starts late would else count, and evict, as other shards."""
    remote, cache = write(tmp_path / "A", 0), tmp_path / "cache"
    stream = {"a": {"remote": str(remote), "local": str(cache)}}
    running = pickle.dumps(open_dataset(tmp_path / "node", stream).cache)
    write(remote, 0, SAMPLES + 24)
    open_dataset(tmp_path / "node", stream)
    with pytest.raises(DataError, match=r"cache: another job has fetched a newer index meanwhile"):
        pickle.loads(running)


def test_a_cache_that_outlives_its_modules_ends_without_a_word(tmp_path: Path) -> None:
    """As one does that something still holds when the interpreter ends."""
    remote = write(tmp_path / "A", 0)
    dataset = open_dataset(tmp_path / "node", {"a": {"remote": str(remote), "local": str(tmp_path / "cache")}})
    script = "import os, pickle, sys; os.kept = pickle.load(sys.stdin.buffer), [*sys.modules.values()]"
    ended = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(dataset.cache), capture_output=True)
    assert (ended.returncode, ended.stderr.decode()) == (0, "")


def test_data_that_moved_is_known_by_its_hashes(tmp_path: Path) -> None:
    remote, cache = write(tmp_path / "A", 0), tmp_path / "cache"
    read(tmp_path, remote, cache)
    moved = remote.rename(tmp_path / "moved")
    before = listing(cache)
    assert read(tmp_path, moved, cache) == tokens()
    after = listing(cache)
    assert all(after[name] == before[name] for name in before if name.startswith("shard"))
    assert read(tmp_path, moved, cache) == tokens()


@pytest.mark.parametrize(
    "found", [{"model.safetensors": "weights"}, {"index.json": "{}"}, {"shard.00000.mds": "x"}, {"old/x": ""}]
)
def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path, found: dict[str, str]) -> None:
    remote, cache = write(tmp_path / "A", 0), tmp_path / "cache"
    for name, text in found.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(text)
    before = listing(cache)
    with pytest.raises(DataError, match=rf"cache: no cache of {remote}, which stream 'a' names: it"):
        read(tmp_path, remote, cache)
    assert listing(cache) == before


def test_a_fresh_disk_and_what_a_killed_start_left_are_empty(tmp_path: Path) -> None:
    remote, cache = write(tmp_path / "A", 0), tmp_path / "cache"
    for name in ("lost+found", ".locks"):
        (cache / name).mkdir(parents=True)
    (cache / ".mosaic_photon.mosaic_photon.json.7.part").write_text("{")
    assert read(tmp_path, remote, cache) == tokens()


def test_one_small_request_tells_whether_a_store_has_changed(s3: Any, proxy: Proxy, tmp_path: Path) -> None:
    remote, cache = s3.upload(write(tmp_path / "A", 0), "identity"), tmp_path / "cache"
    assert read(tmp_path, remote, cache) == tokens()
    proxy.requests.clear()
    assert read(tmp_path, remote, cache) == tokens()
    assert proxy.requests == ["HEAD /identity/index.json"]
    s3.client.upload_file(str(write(tmp_path / "A", 500) / "index.json"), "identity", "index.json")
    for path in (tmp_path / "A").glob("shard*"):
        s3.client.upload_file(str(path), "identity", path.name)
    assert read(tmp_path, remote, cache) == tokens(500)


def test_without_a_network_the_start_goes_on_from_the_cache(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused, and without any answer: then after one download_timeout. An absent cache leaves nothing behind."""
    remote, cache = s3.upload(write(tmp_path / "A", 0), "offline"), tmp_path / "cache"
    read(tmp_path, remote, cache)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (9, silent.getsockname()[1]):
            monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            caplog.clear()
            assert read(tmp_path, remote, cache, download_timeout=1) == tokens()
            (warning,) = (record.message for record in caplog.records if record.levelno == logging.WARNING)
            assert warning.startswith(f"{remote}: stream 'a': it can't be asked whether it has changed; going on")
        with pytest.raises(DataError, match=r"s3://offline/index\.json: .*no answer"):
            read(tmp_path, remote, tmp_path / "absent", download_timeout=1)
        assert not (tmp_path / "absent").exists()
        with pytest.raises(DataError, match=r"a cache of s3://offline, and s3://other, which stream 'a' names"):
            read(tmp_path, "s3://other", cache, download_timeout=1)


def test_a_cache_of_streamings_without_a_network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is read as it is, and the warning says that nobody knows whose it is."""
    cache = write(tmp_path / "cache", 0)
    before = listing(cache)
    del before["."]
    assert read(tmp_path / "node", tmp_path / "not-mounted", cache) == tokens()
    assert f"nor whether {cache} holds its data; going on" in caplog.text
    after = listing(cache)
    assert {name: after[name] for name in before} == before


@pytest.mark.skipif(os.getuid() != 0, reason="another user's file can only be made by root")
@pytest.mark.parametrize("ours", [False, True], ids=["filled by another program", "filled by a job of another user"])
def test_a_cache_that_cannot_be_written_to_is_read(tmp_path: Path, ours: bool) -> None:
    remote, cache = write(tmp_path / "A", 0), tmp_path / "cache"
    if ours:
        read(tmp_path / "node-of-root", remote, cache)
    else:
        shutil.copytree(remote, cache)
    tmp_path.chmod(0o755)
    for folder in (*tmp_path.parents, tmp_path):
        folder.chmod(folder.stat().st_mode | 0o005)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_read_as_nobody, args=(remote, cache, tmp_path / "node"))
    (tmp_path / "node").mkdir()
    os.chown(tmp_path / "node", 65534, 65534)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def _read_as_nobody(remote: Path, cache: Path, node: Path) -> None:
    os.setgid(65534)
    os.setuid(65534)
    assert read(node, remote, cache) == tokens()


def test_of_a_nodes_processes_one_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process's second call gets the second answer; another run asks anew."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    context = multiprocessing.get_context("fork")
    for port in ("1", "2"):
        monkeypatch.setenv("MASTER_PORT", port)
        answers = context.SimpleQueue()
        ranks = [context.Process(target=_ask_twice, args=(tmp_path, answers)) for _ in range(4)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(60)
        assert [answers.get() for _ in ranks] == [[f"{port}1", f"{port}2"]] * 4
    assert (tmp_path / "asked").read_text() == "1122"


def _ask_twice(folder: Path, answers: Any) -> None:
    port = os.environ["MASTER_PORT"]

    def ask() -> dict[str, Any]:
        with (folder / "asked").open("a+") as file:
            file.write(port)
            file.seek(0)
            return {"said": f"{port}{file.read().count(port)}"}

    with in_force(Settings(str(folder / "node"))):
        answers.put([once_a_run("key", ask)["said"] for _ in range(2)])
