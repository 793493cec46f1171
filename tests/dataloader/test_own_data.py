"""Nothing that was not fetched by us is removed or written into, whatever folders are called and however linked."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mds_data import sample_tokens, write_mds
from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.node.folder import settle_folders
from mosaic_photon.dataloader.node.settings import Settings, in_force
from mosaic_photon.dataloader.shards.index import DataError
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.data_config import load_data_config

SAMPLES, PER_SHARD = 80, 4
fresh = itertools.count()


def listing(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Every file, folder and link below a folder: kind, size, time, inode, content."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        facts = path.lstat()
        content = hashlib.sha1(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (facts.st_mode, facts.st_size, facts.st_mtime_ns, facts.st_ino, content)
    return found


def open_dataset(
    node: Path, streams: dict[str, dict[str, Any]], adopt: bool = False, **arguments: Any
) -> ShardedDataset:
    """As a loader opens it, llm-foundry's config keys in."""
    config = {"streams": streams}
    with in_force(Settings(str(node), adopt)):
        settle_folders(config)
        dataset = ShardedDataset(config | arguments)
    dataset.cache.check()
    return dataset


def read_all(dataset: ShardedDataset) -> list[list[int]]:
    """All samples' tokens, twice, the second time backwards."""
    ids = [*range(dataset.num_samples), *reversed(range(dataset.num_samples))]
    read = [dataset.get_item(sample_id)["tokens"].tolist() for sample_id in ids]
    dataset.reader.close()
    dataset.cache.close()
    assert read == read[: len(read) // 2] + read[: len(read) // 2][::-1]
    return read[: len(read) // 2]


def tokens(start: int = 0, samples: int = SAMPLES) -> list[list[int]]:
    return [sample_tokens(start + number).tolist() for number in range(samples)]


@pytest.fixture(scope="module")
def bind_mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path, Path], None]]:
    """Mounts a folder at another place; all are unmounted at the end."""
    made: list[Path] = []

    def mount(folder: Path, at: Path) -> None:
        at.mkdir()
        done = subprocess.run(["mount", "--bind", str(folder), str(at)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no bind mount can be made here: {done.stderr.strip()}")
        made.append(at)

    yield mount
    for at in made:
        subprocess.run(["umount", str(at)], check=True)


def symlink(data: Path, place: Path) -> str:
    (place / "link").symlink_to(data)
    return str(place / "link")


def link_to_link(data: Path, place: Path) -> str:
    (place / "second").symlink_to(symlink(data, place))
    return str(place / "second")


def link_above(data: Path, place: Path) -> str:
    (place / "above").symlink_to(data.parent)
    return str(place / "above" / data.name)


def dots(data: Path, place: Path) -> str:
    (place / "sub").mkdir()
    return str(place / "sub" / ".." / os.path.relpath(data, place))


def relative_link(data: Path, place: Path) -> str:
    (place / "relative").symlink_to(os.path.relpath(data, place))
    return str(place / "relative")


SPELLINGS: dict[str, Callable[[Path, Path], str]] = {
    "as it is": lambda data, place: str(data),
    "trailing slash": lambda data, place: f"{data}//",
    "a dot": lambda data, place: f"{data.parent}/./{data.name}",
    "relative": lambda data, place: os.path.relpath(data),
    "file://": lambda data, place: f"file://{data}",
    "file://localhost": lambda data, place: f"file://localhost{data}/",
    "dots": dots,
    "symlink": symlink,
    "link to a link": link_to_link,
    "relative link": relative_link,
    "link above": link_above,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """The samples raw and compressed, with and without hashes, and with things of the user's that have our names."""
    made = {}
    for compression, hashed in itertools.product((None, "zstd"), (True, False)):
        folder = tmp_path_factory.mktemp("data") / "corpus"
        write_mds(folder, SAMPLES, shard_samples=PER_SHARD, compression=compression, hashes=["sha1"] if hashed else [])
        (folder / "shard.00000.mds.part").mkdir()
        (folder / "shard.00000.mds.part" / "precious").write_text("the user's")
        (folder / "shard.00001.mds.part").write_text("another tool's")
        (folder / ".locks").mkdir()
        (folder / ".locks" / "shard.00001.mds").write_text("not a lock of ours")
        (folder / "notes.txt").write_text("about this data")
        made[compression, hashed] = folder
    return made


def shard_bytes(folder: Path) -> int:
    """The most that a shard takes while it is unpacked."""
    shards = json.loads((folder / "index.json").read_text())["shards"]
    return max(shard["raw_data"]["bytes"] + (shard["zip_data"] or {"bytes": 0})["bytes"] for shard in shards)


@given(
    local=st.sampled_from(sorted(SPELLINGS)),
    remote=st.sampled_from([*sorted(SPELLINGS), None]),
    kind=st.tuples(st.sampled_from([None, "zstd"]), st.booleans()),
    switches=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_data_that_is_its_own_remote_stays_as_it_is(
    sources: dict[Any, Path],
    tmp_path: Path,
    local: str,
    remote: str | None,
    kind: tuple[str | None, bool],
    switches: tuple[bool, bool, bool],
) -> None:
    limited, keep_zip, adopt = switches
    data, place = sources[kind], tmp_path / f"at-{next(fresh)}"
    (place / "local").mkdir(parents=True)
    (place / "remote").mkdir()
    stream = {"local": SPELLINGS[local](data, place / "local"), "keep_zip": keep_zip}
    if remote is not None:
        stream["remote"] = SPELLINGS[remote](data, place / "remote")
    before = listing(data)
    dataset = open_dataset(place / "node", {"a": stream}, adopt, cache_limit=4 * shard_bytes(data) if limited else None)
    assert read_all(dataset) == tokens()
    assert listing(data) == before


def test_a_bind_mount_of_the_data_is_the_data(
    sources: dict[Any, Path], tmp_path: Path, bind_mounts: Callable[[Path, Path], None]
) -> None:
    for number, data in enumerate(sources.values()):
        bind_mounts(data, tmp_path / f"mounted-{number}")
        before = listing(data)
        stream = {"local": str(tmp_path / f"mounted-{number}"), "remote": str(data)}
        assert read_all(open_dataset(tmp_path / "node", {"a": stream}, cache_limit=4 * shard_bytes(data))) == tokens()
        stream["local"] += "/cache"
        with pytest.raises(ConfigError, match=r"stream 'a': its cache .* lies in the data of stream 'a'"):
            open_dataset(tmp_path / "node", {"a": stream})
        assert listing(data) == before


@given(
    spelling=st.sampled_from(sorted(SPELLINGS)),
    where=st.sampled_from(["in", "deep in", "around", "the same"]),
    remote_data=st.booleans(),
    reverse=st.booleans(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cache_among_another_streams_data_is_refused(
    sources: dict[Any, Path], tmp_path: Path, spelling: str, where: str, remote_data: bool, reverse: bool
) -> None:
    data, other = sources[None, True], sources["zstd", True]
    place = tmp_path / f"at-{next(fresh)}"
    place.mkdir()
    spelled = SPELLINGS[spelling](data, place)
    cache = {"in": f"{spelled}/cache", "deep in": f"{spelled}/a/b", "around": str(data.parent), "the same": spelled}
    if where == "in" and spelling == "relative link":
        cache["in"] = f"{spelled}/notes-of/../cache"
    streams = {"far": {"remote": str(other), "local": cache[where]}}
    streams["own"] = {"remote": str(data), "local": str(place / "fine")} if remote_data else {"local": str(data)}
    before = listing(data.parent), listing(other)
    with pytest.raises(ConfigError, match=r"stream 'far': its cache .* (lies in|holds) the data of stream 'own'"):
        open_dataset(place / "node", dict(reversed(streams.items())) if reverse else streams)
    assert (listing(data.parent), listing(other)) == before


def test_a_cache_of_validation_in_the_data_of_training_is_refused(sources: dict[Any, Path], tmp_path: Path) -> None:
    data, other = sources[None, True], sources["zstd", True]
    (tmp_path / "data.toml").write_text(
        f'''[mosaic_dataloader]
name = "text"
dataset = {{local = "{data}"}}
[mosaic_eval_dataloader]
name = "text"
dataset = {{remote = "{other}", local = "{data}/cache"}}
'''
    )
    with pytest.raises(ConfigError, match=r"data.toml: stream 'data': its cache .*corpus/cache lies in the data of"):
        load_data_config(tmp_path / "data.toml")


@pytest.mark.parametrize("kind", [(None, True), ("zstd", True), (None, False), ("zstd", False)])
def test_what_another_program_put_into_a_cache_stays(sources: dict[Any, Path], tmp_path: Path, kind: Any) -> None:
    """It is read, it counts towards the limit, and adopt_cache makes it ours."""
    data, cache = sources[kind], tmp_path / "cache"
    cache.mkdir()
    kept = ["index.json", *(path.name for path in sorted(data.glob("shard.0000[01].mds*")) if path.is_file())]
    for name in kept:
        shutil.copy(data / name, cache)
    (cache / "shard.00002.mds.part").mkdir()
    (cache / "notes.txt").write_text("the user's")
    before, source = listing(cache), listing(data)
    del before["."]  # its time: shards are added
    stream = {"a": {"remote": str(data), "local": str(cache)}}
    assert read_all(open_dataset(tmp_path / "node", stream, cache_limit=8 * shard_bytes(data))) == tokens()
    assert read_all(open_dataset(tmp_path / "node", stream, cache_limit=8 * shard_bytes(data))) == tokens()
    after = listing(cache)
    assert {name: after.get(name) for name in before} == before
    assert listing(data) == source

    for name in after.keys() - before.keys():
        if name.startswith("shard"):
            (cache / name).unlink()
    least = 4 * shard_bytes(data)
    with pytest.raises(DataError, match=r"cache_limit: .* leave no room beside the .*set mosaic.adopt_cache = true"):
        open_dataset(tmp_path / "node", stream, cache_limit=least)
    assert read_all(open_dataset(tmp_path / "node", stream, adopt=True, cache_limit=least)) == tokens()
    after = listing(cache)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed and all(name.startswith("shard.0000") and not name.endswith(".part") for name in changed)


def test_a_damaged_file_that_another_program_put_there_is_named(sources: dict[Any, Path], tmp_path: Path) -> None:
    data, cache = sources[None, True], tmp_path / "cache"
    cache.mkdir()
    for name in ("index.json", "shard.00001.mds"):
        shutil.copy(data / name, cache)
    os.truncate(cache / "shard.00001.mds", 50)
    stream = {"a": {"remote": str(data), "local": str(cache)}}
    with pytest.raises(DataError, match=r"shard\.00001\.mds: has 50 bytes .* was here before stream 'a'.*adopt_cache"):
        open_dataset(tmp_path / "node", stream)
    assert (cache / "shard.00001.mds").stat().st_size == 50
    assert read_all(open_dataset(tmp_path / "node", stream, adopt=True)) == tokens()


@pytest.mark.parametrize("kind", [(None, True), ("zstd", True)])
def test_damaged_data_is_never_removed(sources: dict[Any, Path], tmp_path: Path, kind: Any) -> None:
    """Not even where it is its own remote by another name, and the hash of each file is looked at."""
    data, link = tmp_path / "data", tmp_path / "link"
    shutil.copytree(sources[kind], data)
    link.symlink_to(data)
    (shard,) = (path for path in data.glob("shard.00002.mds*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[-3] ^= 4
    shard.write_bytes(content)
    before = listing(data)
    for stream in ({"local": str(data)}, {"local": str(link), "remote": str(data), "validate_hash": "sha1"}):
        dataset = open_dataset(tmp_path / "node", {"a": stream})
        with pytest.raises(DataError, match=r"shard\.00002\.mds.*has (xxh64|sha1) .*has no remote"):
            dataset.cache.check(hashes=True)
        if stream.get("validate_hash") and kind[0]:
            with pytest.raises(DataError, match=r"shard\.00002\.mds.zstd: has sha1 .*has no remote"):
                dataset.get_item(int(dataset.sample_offset_per_shard[2]))
    os.truncate(shard, 60)
    before[shard.name] = listing(data)[shard.name]
    with pytest.raises(DataError, match=r"shard\.00002\.mds.*has 60 bytes instead of"):
        open_dataset(tmp_path / "node", {"a": {"local": str(data)}})
    assert listing(data) == before


def test_streams_and_loaders_may_share_a_cache(sources: dict[Any, Path], tmp_path: Path) -> None:
    data = sources["zstd", True]
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    streams = {name: {"remote": str(data), "local": str(tmp_path / name)} for name in ("cache", "link")}
    before, limit = listing(data), 4 * shard_bytes(data)
    train, evaluation = (open_dataset(tmp_path / "node", streams, cache_limit=limit) for _ in range(2))
    assert read_all(train) == read_all(evaluation) == tokens() * 2
    assert listing(data) == before


def test_unpacked_shards_lie_in_the_node_folder(sources: dict[Any, Path], tmp_path: Path) -> None:
    node = tmp_path / "node"
    dataset = open_dataset(node, {"a": {"local": str(sources["zstd", True])}})
    read_all(dataset)
    assert len(list(node.glob("unpacked/*/shard.*.mds"))) == len(dataset.shards)
    assert not list(node.glob("unpacked/*/*.zstd"))


def test_data_that_a_file_url_places_on_another_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"file://server/data: a file:// URL names a folder of this machine"):
        open_dataset(tmp_path / "node", {"a": {"remote": "file://server/data"}})


def test_caches_without_local_lie_in_the_node_folder_of_each_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each user has one of their own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    places = []
    for user in ("3001", "3002"):
        config = {"remote": "s3://bucket/data"}
        with in_force(Settings(str(tmp_path / user))):
            settle_folders(config)
        places.append(Path(config["local"]))
    config = {"remote": "s3://bucket/data"}
    settle_folders(config)
    assert Path(config["local"]).parent == tmp_path / f"mosaic-photon-{os.getuid()}" / "caches"
    assert [place.parent for place in places] == [tmp_path / user / "caches" for user in ("3001", "3002")]
    assert {place.name for place in places} == {Path(config["local"]).name}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as two other users")
def test_two_users_of_a_machine_have_caches_of_their_own(
    sources: dict[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams without `local`, in a temporary directory that everybody can write to."""
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    data = shutil.copytree(sources["zstd", True], tmp_path / "data")
    for folder in (tmp_path, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o005)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    for user in (3001, 3002):
        child = multiprocessing.get_context("fork").Process(target=_read_as, args=(user, data))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert (shared / f"mosaic-photon-{user}").stat().st_mode & 0o777 == 0o700


def _read_as(user: int, data: Path) -> None:
    os.setgid(user)
    os.setuid(user)
    for stream in ({"remote": str(data)}, {"local": str(data)}):
        assert read_all(open_dataset("", {"a": stream})) == tokens()
