"""Data that is missing, damaged, dangerous or too small is refused with one message, never read past."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import MDSWriter

from mds_data import job, numbers, wait_until, write_mds
from mosaic_photon.dataloader.shards.claim import PARTS
from mosaic_photon.dataloader.shards.index import DataError
from mosaic_photon.dataloader.tokens import fault_of_bytes
from mosaic_photon.errors import ConfigError


@pytest.fixture
def copy(mds: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may damage."""
    return Path(shutil.copytree(mds, tmp_path / "data"))


def remote_job(remote: Path, cache: Path, adopt_cache: bool = False, **dataset: Any) -> Any:
    return job({"remote": str(remote), "local": str(cache), "download_retry": 0, **dataset}, adopt_cache=adopt_cache)


def edit_index(folder: Path, change: Any) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index["shards"])
    path.write_text(json.dumps(index))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def test_a_missing_local_shard_is_found_at_the_start(copy: Path, build: Any) -> None:
    (copy / "shard.00003.mds").unlink()
    with pytest.raises(DataError, match=r"shard\.00003\.mds: missing; index\.json lists it"):
        build(job({"local": str(copy)}))


def test_a_shard_missing_in_the_remote_raises_instead_of_ending_the_epoch(
    copy: Path, tmp_path: Path, build: Any
) -> None:
    (copy / "shard.00003.mds").unlink()
    loader = build(remote_job(copy, tmp_path / "cache"))
    for _ in range(2):  # also when tried again
        with pytest.raises(DataError, match=r"shard\.00003\.mds: stream 'data': download failed after 1 attempt"):
            for _batch, _ in zip(loader, range(40), strict=False):
                pass
    assert loader.progress.epoch == 0


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_shard_in_the_cache_is_fetched_again(
    copy: Path, tmp_path: Path, build: Any, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    reference = build(remote_job(copy, cache))
    expected = [numbers(batch) for batch, _ in zip(reference, range(60), strict=False)]
    reference.close()
    shard = cache / "shard.00002.mds"
    if damage == "truncate":
        os.truncate(shard, 100)
    else:
        flip_a_bit(shard)
    config = remote_job(copy, cache)
    config.mosaic.verify_cache = damage == "flip"
    assert [numbers(batch) for batch, _ in zip(build(config), range(60), strict=False)] == expected
    assert shard.read_bytes() == (copy / "shard.00002.mds").read_bytes()
    assert "it will be fetched again" in caplog.text


def test_a_shard_truncated_between_the_check_and_its_use_is_fetched_again(
    copy: Path, tmp_path: Path, build: Any
) -> None:
    cache = tmp_path / "cache"
    for path in copy.iterdir():
        cache.mkdir(exist_ok=True)
        shutil.copy(path, cache)
    loader = build(remote_job(copy, cache, adopt_cache=True))
    os.truncate(cache / "shard.00000.mds", 50)
    assert numbers(next(iter(loader))) == [0, 1]


def test_verification_says_what_it_cannot_see(tmp_path: Path, build: Any, caplog: pytest.LogCaptureFixture) -> None:
    for name, hashes in (("bare", []), ("hashed", ["xxh64"])):
        write_mds(tmp_path / name, 40, hashes=hashes)
    streams = {name: {"local": str(tmp_path / name)} for name in ("bare", "hashed")}
    build(job({"streams": streams}, verify_cache=True))
    warnings = [record.message for record in caplog.records if "no hashes" in record.message]
    assert warnings == ["verify_cache: stream 'bare' has no hashes in its index: only sizes are compared"]


@pytest.mark.parametrize("verify", [False, True])
def test_a_damaged_local_shard_without_remote_is_an_error(copy: Path, build: Any, verify: bool) -> None:
    shard = copy / "shard.00002.mds"
    if verify:
        flip_a_bit(shard)
    else:
        os.truncate(shard, 100)
    what = "has xxh64" if verify else "has 100 bytes instead of"
    with pytest.raises(DataError, match=rf"shard\.00002\.mds: {what}.*has no remote"):
        build(job({"local": str(copy)}, verify_cache=verify))


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_download_with_a_wrong_hash_is_not_used(tmp_path: Path, build: Any, compression: str | None) -> None:
    remote, cache = write_mds(tmp_path / "remote", 40, compression=compression), tmp_path / "cache"
    flip_a_bit(next(remote.glob("shard.00001.mds*")))
    loader = build(remote_job(remote, cache, validate_hash="sha1"))
    with pytest.raises(DataError, match=r"sha1 [0-9a-f]{40} instead of"):
        for _batch, _ in zip(loader, range(20), strict=False):
            pass
    loader.close()
    wait_until(lambda: not list((cache / PARTS).iterdir()))  # fetches under way end
    assert not (cache / "shard.00001.mds").exists()


def test_a_hash_that_the_index_lacks_is_refused_at_the_start(mds: Path, tmp_path: Path, build: Any) -> None:
    with pytest.raises(DataError, match=r"validate_hash: 'md5' was not computed.*sha1, xxh64"):
        build(remote_job(mds, tmp_path / "cache", validate_hash="md5"))


def test_compressed_data_that_does_not_decompress_is_an_error(tmp_path: Path, build: Any) -> None:
    remote = write_mds(tmp_path / "remote", 40, compression="zstd")
    path = remote / "shard.00000.mds.zstd"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match="cannot be decompressed"):
        next(iter(build(remote_job(remote, tmp_path / "cache"))))


@pytest.mark.parametrize("name", ["../outside/x.mds", "/tmp/x.mds", "a/../../x.mds", "..", ""])
def test_an_index_that_points_outside_its_folder_is_refused(copy: Path, tmp_path: Path, build: Any, name: str) -> None:
    edit_index(copy, lambda shards: shards[1]["raw_data"].update(basename=name))
    for config in (job({"local": str(copy)}), remote_job(copy, tmp_path / "cache")):
        with pytest.raises(DataError, match="lies outside the dataset's folder"):
            build(config)
    assert not (tmp_path / "outside").exists() and not (tmp_path / "cache" / "index.json").exists()


@pytest.mark.parametrize("name", ["index.json", ".locks/x.mds", "limit", "shard.00000.mds.part"])
def test_a_shard_may_not_have_a_name_of_the_caches_own(copy: Path, build: Any, name: str) -> None:
    edit_index(copy, lambda shards: shards[1]["raw_data"].update(basename=name))
    with pytest.raises(DataError, match="has a name that the cache uses itself"):
        build(job({"local": str(copy)}))


def test_pickled_columns_are_refused_unless_allowed(tmp_path: Path, build: Any) -> None:
    with MDSWriter(out=str(tmp_path), columns={"tokens": "ndarray:int32:17", "extra": "pkl"}) as mds:
        for i in range(16):
            mds.write({"tokens": (i + numbers_row()).astype("int32"), "extra": {"i": i}})
    with pytest.raises(DataError, match="column 'extra' is pickled"):
        build(job({"local": str(tmp_path)}))
    assert next(iter(build(job({"local": str(tmp_path), "allow_unsafe_types": True}))))


def numbers_row() -> Any:
    return np.arange(17)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": "bytes"}, "neither a 'tokens' nor a 'text' column; it has ['image']"),
        ({"tokens": "str"}, "column 'tokens' is encoded as 'str', not as an array of token ids"),
        ({"tokens": "ndarray:float32:17"}, "column 'tokens' holds float32 values, not token ids"),
    ],
)
def test_data_that_is_not_tokens_or_text(tmp_path: Path, build: Any, columns: dict[str, str], message: str) -> None:
    values = {"bytes": b"x", "str": "x", "ndarray:float32:17": numbers_row().astype("float32")}
    with MDSWriter(out=str(tmp_path), columns=columns) as mds:
        for _ in range(8):
            mds.write({name: values[encoding] for name, encoding in columns.items()})
    with pytest.raises(DataError) as caught:
        build(job({"local": str(tmp_path)}))
    assert message in str(caught.value)


def test_folders_that_are_no_mds_dataset(tmp_path: Path, build: Any) -> None:
    with pytest.raises(DataError, match=r"index\.json: not found.*no such folder"):
        build(job({"local": str(tmp_path / "nothing")}))
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"is no MDS dataset; the folder holds train\.jsonl"):
        build(job({"local": str(tmp_path)}))
    (tmp_path / "index.json").write_text('{"version": 2, "shards": [')
    with pytest.raises(DataError, match="damaged or no MDS index"):
        build(job({"local": str(tmp_path)}))
    (tmp_path / "index.json").write_text('{"version": 2, "shards": []}')
    with pytest.raises(DataError, match="the dataset is empty"):
        build(job({"local": str(tmp_path)}))


def test_compressed_local_data_keeps_its_files_whatever_the_remote_is_called(tmp_path: Path, build: Any) -> None:
    folder = write_mds(tmp_path / "data", 40, compression="zstd")
    before = sorted(path.name for path in folder.glob("*.zstd"))
    assert numbers(next(iter(build(job({"remote": f"{folder}/", "local": str(folder)}))))) == [0, 1]
    assert sorted(path.name for path in folder.glob("*.zstd")) == before


def test_a_damaged_index_in_the_cache_is_fetched_again(mds: Path, tmp_path: Path, build: Any) -> None:
    build(remote_job(mds, tmp_path))
    (tmp_path / "index.json").write_text("{")
    assert numbers(next(iter(build(remote_job(mds, tmp_path))))) == [0, 1]


@pytest.mark.parametrize("token", [-1, 2048])
def test_token_ids_outside_the_vocabulary(tmp_path: Path, build: Any, token: int) -> None:
    with MDSWriter(out=str(tmp_path), columns={"tokens": "ndarray:int32:17"}) as mds:
        for i in range(8):
            row = numbers_row().astype("int32")
            row[5] = token if i == 1 else 7
            mds.write({"tokens": row})
    with pytest.raises(DataError, match=rf"token id {token} is outside the vocabulary of 2048 tokens.*sample 1\)"):
        next(iter(build(job({"local": str(tmp_path)}))))


@pytest.mark.parametrize(
    ("stored", "given", "ids", "vocabulary", "proposed"),
    [
        ("int32", "int64", range(100, 164), 2048, "int32"),
        ("int64", "int32", range(100, 164), 2048, "int64"),
        ("uint16", "int32", range(60_000, 60_064), 65_536, "uint16"),
        ("uint8", "uint16", range(192, 256), 256, "uint8"),
        ("int64", "int64", [7] * 63 + [5000], 2048, None),  # ids of another tokenizer, which any bytes could be
        ("int64", "int64", [7] * 63 + [70_000], 5000, None),
        ("int32", "int32", [7] * 63 + [200_000], 128_000, None),
        ("uint16", "uint16", [7] * 63 + [5000], 2048, None),
    ],
)
def test_a_type_of_bytes_is_proposed_where_it_is_the_right_one(
    stored: str, given: str, ids: Any, vocabulary: int, proposed: str | None
) -> None:
    said = fault_of_bytes(np.array(ids, stored).tobytes(), np.dtype(given), vocabulary)
    assert (f"set token_encoding_type = {proposed!r}" in said) if proposed else said == ""


def test_no_type_is_proposed_for_bytes_that_were_cut() -> None:
    for vocabulary in (2048, 128_000):
        said = fault_of_bytes(b"\7\0\0\0\0\0\0\0" * 8 + b"\7\1", np.dtype("int64"), vocabulary)
        assert "are 66, no whole number of ids of 8 bytes" in said
        assert "uint8" not in said and (vocabulary == 2048 or "uint16" not in said)


def test_a_shard_whose_header_is_damaged(copy: Path, build: Any) -> None:
    shard = copy / "shard.00000.mds"
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(DataError, match=r"shard\.00000\.mds: has a damaged header"):
        next(iter(build(job({"local": str(copy)}))))


@pytest.mark.parametrize("encoding", ["ndarray:int32:17", "ndarray:int32"])
def test_a_shard_with_one_wrong_offset(tmp_path: Path, build: Any, encoding: str) -> None:
    """Samples of a fixed size must have it; others at least have the bytes that say theirs."""
    shard = write_mds(tmp_path, 16, encoding=encoding) / "shard.00000.mds"
    content = bytearray(shard.read_bytes())
    offsets = np.frombuffer(content, np.uint32, 17, 4)
    offsets[5] = offsets[5] + 4 if encoding.endswith("17") else offsets[6] - 3
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"shard\.00000\.mds: has a damaged header"):
        next(iter(build(job({"local": str(tmp_path)}))))


def test_streams_that_leave_an_epoch_empty(mds: Path, build: Any) -> None:
    with pytest.raises(ConfigError, match="leave an epoch without samples"):
        build(job({"streams": {"a": {"local": str(mds), "repeat": 0.001}}}))


@pytest.mark.parametrize("given", [{"epoch_size": 10**30}, {"choose": 10**30}, {"repeat": 10**30}])
def test_streams_that_make_an_epoch_beyond_counting(mds: Path, build: Any, given: dict[str, int]) -> None:
    whole = {"epoch_size": given.pop("epoch_size", None)}
    with pytest.raises(ConfigError, match="epoch_size, repeat and choose of the streams make too long an epoch"):
        build(job({"streams": {"a": {"local": str(mds), **given}}, **whole}))


def test_sequence_lengths_that_do_not_fit(mds: Path, build: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_seq_len: 20 does not fit training\.seq_len 16"):
        build(job({"local": str(mds), "max_seq_len": 20}))
    with pytest.raises(ConfigError, match=r"its samples have 17 tokens, but training\.seq_len 64 takes 65"):
        build(job({"local": str(mds)}, seq_len=64))


def test_a_dataset_smaller_than_a_global_batch(mds: Path, build: Any) -> None:
    with pytest.raises(ConfigError, match="an epoch has 203 samples, fewer than one global batch of 256"):
        build(job({"local": str(mds)}, batch=256))
    with pytest.raises(ConfigError, match="an epoch has 6 samples, fewer than one global batch of 8"):
        build(job({"local": str(mds), "epoch_size": 6}))


def test_a_cache_limit_too_small_for_the_shards(mds: Path, tmp_path: Path, build: Any) -> None:
    with pytest.raises(DataError, match="cache_limit: 1024 bytes is less than four times the largest shard"):
        build(remote_job(mds, tmp_path / "cache", cache_limit="1kb"))


def test_no_permission_to_write_the_cache(mds: Path, tmp_path: Path, build: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file.*: cannot use as cache of stream 'data': Not a directory"):
        build(remote_job(mds, tmp_path / "file" / "cache"))


def test_a_remote_of_an_unknown_kind(build: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stream 'data': Unsupported remote path: s4://bucket"):
        build(job({"remote": "s4://bucket", "local": str(tmp_path)}))


def test_a_full_disk_is_named_and_leaves_no_part_of_a_file(tmp_path: Path, build: Any) -> None:
    """A limit on file sizes makes the kernel refuse the write as a full disk does."""
    remote, cache = write_mds(tmp_path / "remote", 4000, shard_samples=4000), tmp_path / "cache"
    loader = build(remote_job(remote, cache))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write stream 'data': File too large.*free some space"):
            next(iter(loader))
        loader.close()
        wait_until(lambda: not list((cache / PARTS).iterdir()))  # fetches under way must not find room again
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in cache.iterdir() if not path.name.startswith(".")] == ["index.json"]
