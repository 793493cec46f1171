"""Shards are Streaming's, and who writes them need not import what Streaming does."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from mosaic_photon.prepare.record import Options
from mosaic_photon.prepare.shards import Stretch, write_shard
from prepare_calls import TOKENIZER, write_jsonl

OPTIONS = Options(64, "", "", "", "text", 0.0, None, ["xxh64"], 64, "token", False, "stop")

ALONE = """
import sys
from mosaic_photon.cli import main
from mosaic_photon.prepare.pool import Processes

def here(self, function, calls, finished):
    for number, call in enumerate(calls):
        finished(number, function(*call))

Processes.run = here
assert main(sys.argv[1:]) == 0
heavy = {"torch", "transformers", "datasets", "pyarrow", "composer", "torchtitan", "streaming.base.dataset"}
print("imported:", sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.parametrize(("compression", "hashes"), [(None, ["xxh64"]), ("zstd:7", ["sha1", "xxh64"]), ("br", [])])
def test_a_shard_is_the_one_of_streamings_writer(tmp_path, compression, hashes):
    from streaming import MDSWriter

    rows = np.random.default_rng(0).integers(0, 2**31 - 1, (37, 65), np.int32)
    columns, out = {"tokens": "ndarray:int32:65"}, str(tmp_path / "by_streaming")
    with MDSWriter(columns=columns, out=out, compression=compression, hashes=hashes, size_limit=None) as writer:
        for row in rows:
            writer.write({"tokens": row})
    (expected,) = json.loads((tmp_path / "by_streaming/index.json").read_text())["shards"]

    (tmp_path / "0.bin").write_bytes(rows[:10].tobytes())
    (tmp_path / "1.bin").write_bytes(b"\0" * 8 + rows[10:].tobytes())
    stretches = [Stretch(str(tmp_path / "0.bin"), 0, 650), Stretch(str(tmp_path / "1.bin"), 2, 27 * 65)]
    (tmp_path / "train").mkdir()
    options = replace(OPTIONS, compression=compression, hashes=hashes)
    entry = write_shard(0, stretches, options, str(tmp_path / "train"), str(tmp_path / "note"))
    assert entry == expected
    (name,) = (file.name for file in (tmp_path / "train").iterdir())
    assert (tmp_path / "train" / name).read_bytes() == (tmp_path / "by_streaming" / name).read_bytes()


def test_prepare_starts_without_torch(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ["def word(self): return 1\n" * 100])
    words = ["prepare", str(source), "--out", str(tmp_path / "out"), "--tokenizer", TOKENIZER, "--seq-len", "63"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *words, "--val", "0"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported: []"
