"""Tokens per second of this loader and others on the same samples, and what they take; and a cold start from S3.

    python benchmarks/bench_loader.py [--repeats 5] [--memory-batches 10000] [--skip-cold]

Warm: S = 2048, B = 8, shuffled, shards in the page cache; ours without workers, llm-foundry's loader with 2 workers,
Streaming's StreamingDataLoader with 2 workers, and, where they can be imported, litdata's TokensLoader with 0 and 2
workers and zephon; rounds of all in turn, each in a process of its own, medians. CPU and memory are of all processes of
a loader. Cold: the same shards from a moto S3 server on the loopback interface into an empty cache, against parallel
GETs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import psutil
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

from mosaic_photon.dataloader import DataSpecDataLoader, build_mosaic_dataloader
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.parts import HuggingFaceTokenizer

ASSETS = str(Path(__file__).parent.parent / "tests" / "assets" / "tokenizer")
BATCH, SEQ_LEN, SAMPLES, SHARDS = 8, 2048, 30 * 1022, 30
PACE_S = 0.02


def write_data(folder: Path, samples: int) -> None:
    """`samples` x 2049 random int32 tokens, in shards of 8 MB."""
    rng = np.random.default_rng(0)
    columns = {"tokens": f"ndarray:int32:{SEQ_LEN + 1}"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=8 << 20, hashes=["xxh64"]) as out:
        for _ in range(samples):
            out.write({"tokens": rng.integers(3, 2000, SEQ_LEN + 1, dtype=np.int32)})


def config(dataset: dict[str, Any]) -> dict[str, Any]:
    dataset = {"shuffle": True, "max_seq_len": SEQ_LEN + 1, **dataset}
    return {"name": "text", "drop_last": True, "num_workers": 0, "dataset": dataset}


def ours(dataset: dict[str, Any]) -> DataSpecDataLoader:
    job = MosaicJobConfig()
    job.mosaic.dataloader = config(dataset)
    job.model.hf_assets_path = ASSETS
    job.training.local_batch_size, job.training.seq_len = BATCH, SEQ_LEN
    return build_mosaic_dataloader(1, 0, HuggingFaceTokenizer(ASSETS), job)


def another_name(folder: Path) -> Path:
    """A new link to the folder: Streaming refuses one that it has had open before in this process."""
    link = Path(tempfile.mkdtemp(dir=folder.parent), folder.name)
    link.symlink_to(folder)
    return link


def foundry(folder: Path) -> Iterable[Any]:
    from llmfoundry.data.dataloader import build_dataloader
    from transformers import AutoTokenizer

    loader = config({"local": str(another_name(folder))}) | {
        "num_workers": 2,
        "pin_memory": False,
        "prefetch_factor": 2,
    }
    return build_dataloader(loader, AutoTokenizer.from_pretrained(ASSETS), BATCH).dataloader


def streaming(folder: Path) -> Iterable[Any]:
    dataset = StreamingDataset(local=str(another_name(folder)), shuffle=True, batch_size=BATCH)
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=2, drop_last=True)


def litdata(folder: Path, workers: int) -> Iterable[Any]:
    """Its TokensLoader over the same tokens in chunks of the same size, as its own documentation has it."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    block = TokensLoader(block_size=SEQ_LEN + 1)
    dataset = StreamingDataset(input_dir=str(folder.with_name("litdata")), item_loader=block, shuffle=True)
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)


def write_litdata(folder: Path, samples: int) -> None:
    """What `write_data` writes, by litdata's writer; nothing where litdata is not installed."""
    try:
        from litdata.streaming import Cache
        from litdata.streaming.item_loader import TokensLoader
    except ImportError:
        return
    import torch

    rng = np.random.default_rng(0)
    block = TokensLoader(block_size=SEQ_LEN + 1)
    cache = Cache(str(folder), chunk_size=(SEQ_LEN + 1) * (samples // SHARDS), item_loader=block)
    for number in range(samples):
        cache[number] = torch.from_numpy(rng.integers(3, 2000, SEQ_LEN + 1, dtype=np.int32))
    cache.done()
    cache.merge()


def zephon(folder: Path) -> Iterable[Any]:
    """The same shards through its pipeline."""
    from zephon import Pipeline
    from zephon.io import Dataset
    from zephon.work import MixtureSpec, StaticMixtureWorkSource

    dataset = Dataset.from_path("data", str(folder), fmt="mds")
    source = StaticMixtureWorkSource(datasets=[dataset], mixture=MixtureSpec({"data": 1.0}), seed=0)
    return Pipeline(source).map_transform(_split).batch(microbatch_size=BATCH)


def _split(sample: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": sample["tokens"][:-1], "labels": sample["tokens"][1:]}


LOADERS: dict[str, tuple[Callable[[Path], Iterable[Any]], int]] = {
    "ours, no workers": (lambda folder: ours({"local": str(folder)}), 2000),
    "llm-foundry, 2 workers": (foundry, 300),
    "Streaming, 2 workers": (streaming, 300),
    "litdata, no workers": (lambda folder: litdata(folder, 0), 2000),
    "litdata, 2 workers": (lambda folder: litdata(folder, 2), 2000),
    "zephon": (zephon, 1000),
}
"""How to make each, and how many batches are timed."""


def probe(name: str, folder: Path, warm_up: int = 100) -> dict[str, float]:
    """Batches per second, CPU ms a batch and MiB (PSS) over all processes of the loader, and how many these are."""
    make, batches = LOADERS[name]
    process = psutil.Process()
    before = process.memory_full_info().pss
    iterator = iter(make(folder))
    for _ in range(warm_up):
        next(iterator)

    def cpu() -> float:
        return sum(sum(each.cpu_times()[:2]) for each in [process, *process.children(recursive=True)])

    begin, used = time.perf_counter(), cpu()
    for _ in range(batches):
        next(iterator)
    took, used = time.perf_counter() - begin, cpu() - used
    family = [process, *process.children(recursive=True)]
    pss = sum(each.memory_full_info().pss for each in family) - before
    return {"rate": batches / took, "cpu_ms": 1000 * used / batches, "mib": pss / 2**20, "processes": len(family)}


def warm(folder: Path, repeats: int) -> None:
    """Rounds of all loaders in turn, each in a process of its own; medians."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        for name in LOADERS:
            command = [sys.executable, __file__, "--probe", name, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                if name not in found:
                    print(f"{name}: left out: {reason}")
                continue
            found.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    best = statistics.median(row["rate"] for row in found["ours, no workers"])
    columns = f"{'batches/s':>10} {'tokens/s':>14} {'ours is':>8} {'CPU ms':>8} {'MiB':>6} {'processes':>9}"
    print(f"{'loader':24} {columns}   of {repeats} rounds, B={BATCH} S={SEQ_LEN}")
    for name, rows in found.items():
        rate, cpu, mib, processes = (
            statistics.median(row[key] for row in rows) for key in ("rate", "cpu_ms", "mib", "processes")
        )
        spread = f"{min(row['rate'] for row in rows):.0f}-{max(row['rate'] for row in rows):.0f}"
        tokens = rate * BATCH * SEQ_LEN
        taken = f"{cpu:8.3f} {mib:6.0f} {processes:9.0f}"
        print(f"{name:24} {rate:10.0f} {tokens:14,.0f} {best / rate:7.1f}x {taken}   {spread}")


def memory(folder: Path, batches: int) -> None:
    """Growth of anonymous memory and descriptors between batch 200 and `batches` later."""
    process, loader = psutil.Process(), ours({"local": str(folder)})
    iterator = iter(loader)

    def anonymous() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024

    for _ in range(200):
        next(iterator)
    before, files = anonymous(), process.num_fds()
    for _ in range(batches):
        next(iterator)
    growth, opened = (anonymous() - before) / 2**20, process.num_fds() - files
    print(f"over {batches} batches: anonymous memory grew by {growth:.1f} MiB, open descriptors by {opened}")
    loader.close()


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """A moto server in a process of its own."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    with log.open("w") as out:
        command = [sys.executable, "-u", "-m", "moto.server", "-p", "0"]
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        while "Running on http://" not in log.read_text():
            time.sleep(0.1)
        yield log.read_text().split("Running on ")[1].split()[0]
    finally:
        server.terminate()
        server.wait()


def cold(folder: Path, root: Path, repeats: int) -> None:
    import boto3

    with s3_server(root / "s3.log") as url:
        os.environ["S3_ENDPOINT_URL"] = url
        client = boto3.client("s3", endpoint_url=url)
        client.create_bucket(Bucket="bench")
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        for name in names:
            client.upload_file(str(folder / name), "bench", name)
        size = sum((folder / name).stat().st_size for name in names)
        rounds = []
        for _ in range(repeats):
            gets = parallel_gets(client, names, root / "gets")
            rounds.append((gets, *cold_epoch(root / "cache", 0.0), cold_epoch(root / "cache", PACE_S)[0]))
    print(f"cold start, {size / 2**20:.0f} MiB in {len(names) - 1} shards from moto's S3 server, {repeats} rounds:")
    labels = [
        "8 parallel GETs alone",
        "all shards here, batches taken without pause",
        "end of the epoch, batches taken without pause",
        f"all shards here, a batch every {1000 * PACE_S:.0f} ms",
    ]
    for label, seconds in zip(labels, zip(*rounds, strict=True), strict=True):
        ratio = statistics.median(first / own for (first, *_), own in zip(rounds, seconds, strict=True))
        print(f"  {label:46} {size / statistics.median(seconds) / 2**20:6.0f} MiB/s {100 * ratio:5.0f} %")


def parallel_gets(client: Any, names: list[str], out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    begin = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: client.download_file("bench", name, str(out / name)), names))
    return time.perf_counter() - begin


def cold_epoch(cache: Path, pause: float) -> tuple[float, float]:
    """Seconds from the first request for a batch until the last shard is here, and until the last batch is.

    With a `pause` after each batch only the first 50 batches are taken; the shards come nevertheless.
    """
    shutil.rmtree(cache, ignore_errors=True)
    loader = ours({"remote": "s3://bench", "local": str(cache), "shuffle_block_size": 4 * SAMPLES // SHARDS})
    begin, clock = time.time(), time.perf_counter()
    for _, _ in zip(range(50 if pause else loader.steps_per_epoch or 0), loader, strict=False):
        time.sleep(pause)
    took = time.perf_counter() - clock
    while len(list(cache.glob("*.mds"))) < SHARDS:
        time.sleep(0.01)
    arrived = max(path.stat().st_mtime for path in cache.glob("*.mds")) - begin
    loader.close()
    return arrived, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-batches", type=int, default=10_000)
    parser.add_argument("--skip-cold", action="store_true")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        print(json.dumps(probe(args.probe[0], Path(args.probe[1]))), flush=True)
        os._exit(0)  # workers of some would be waited for
    versions = {name: sys.modules[name].__version__ for name in ("torch", "streaming", "numpy")}
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {versions}")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_data(root / "shards", SAMPLES)
        write_litdata(root / "litdata", SAMPLES)
        warm(root / "shards", args.repeats)
        memory(root / "shards", args.memory_batches)
        if not args.skip_cold:
            cold(root / "shards", root, args.repeats)


if __name__ == "__main__":
    main()
