"""What the data plane costs as data sets and jobs grow: the index, an epoch's order, eviction and start-up.

    python benchmarks/bench_scale.py [--largest-order 100000000] [--streaming-order 10000000]
        [--largest-index 1000000] [--streaming-index 100000] [--largest-cache 100000] [--streaming-cache 10000]
        [--only index order eviction start] [--simulate]

Each figure is of a process of its own, Streaming's of its own code on the same files in the same run. Seconds are of
the clock, with those of the CPU beside them; MiB are the growth of the process's proportional set (PSS) at its end, and
of its peak. The slope says by which power of the size a cost grows between the two largest sizes. `--simulate` foresees
a job of 128 nodes of 8 ranks on 10^9 samples in 10^6 shards with 128 canonical nodes, and makes the order of its first
epoch, 4 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES_PER_SHARD = 1000
TOKENS = 16
PRESENT_SHARE = 10
"""Of the shards, one in this many is in the cache when others are fetched; at most 10,000."""
DECISIONS = 50
Row = dict[str, Any]


def write_index(folder: Path, shards: int, samples: int, size: int) -> Path:
    """An index.json of many shards, whose files need not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    column = {"column_names": ["tokens"], "column_encodings": [f"ndarray:int32:{TOKENS}"], "column_sizes": [4 * TOKENS]}
    with (folder / "index.json").open("w") as file:
        file.write('{"shards": [')
        for number in range(shards):
            name, hashes = f"shard.{number:07}.mds", {"xxh64": f"{number:016x}"}
            entry = {"version": 2, "format": "mds", "samples": samples, **column, "hashes": ["xxh64"]}
            entry |= {"raw_data": {"basename": name, "bytes": size, "hashes": hashes}, "size_limit": None}
            entry |= {"zip_data": None, "compression": None}
            file.write((", " if number else "") + json.dumps(entry))
        file.write('], "version": 2}')
    return folder


def write_shards(folder: Path, shards: int, samples: int) -> Path:
    """A data set whose shards are links to one file: what counts is how many there are."""
    from streaming import MDSWriter

    one = folder.with_name("one")
    shutil.rmtree(one, ignore_errors=True)
    with MDSWriter(out=str(one), columns={"tokens": f"ndarray:int32:{TOKENS}"}, size_limit=None) as out:
        for number in range(samples):
            out.write({"tokens": np.arange(number, number + TOKENS, dtype=np.int32)})
    file = one / "shard.00000.mds"
    write_index(folder, shards, samples, file.stat().st_size)
    for number in range(shards):
        (folder / f"shard.{number:07}.mds").symlink_to(file)
    return folder


def memory() -> tuple[float, float]:
    """MiB of this process now (PSS), and at its peak (RSS)."""
    pss = Path("/proc/self/smaps_rollup").read_text().split("\nPss:")[1].split()[0]
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return int(pss) / 1024, int(peak) / 1024


@contextmanager
def measured(row: Row) -> Iterator[None]:
    """Seconds of the clock and the CPU, and MiB, into the row."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    (before, peak), clock, cpu = memory(), time.perf_counter(), time.process_time()
    yield
    row |= {"s": time.perf_counter() - clock, "cpu_s": time.process_time() - cpu}
    after, top = memory()
    row |= {"mib": after - before, "peak_mib": top - peak}


def dataset_of(folder: str, node: str, **settings: Any) -> Any:
    from mosaic_photon.dataloader.dataset import ShardedDataset
    from mosaic_photon.dataloader.shards.settings import Settings, in_force

    with in_force(Settings(node_folder=node)):
        return ShardedDataset(local=folder, shuffle=True, num_canonical_nodes=64, **settings)


def index_ours(row: Row, folder: str, node: str) -> None:
    import mosaic_photon.dataloader.dataset  # noqa: F401

    with measured(row):
        dataset_of(folder, node)


def index_streaming(row: Row, folder: str, node: str) -> None:
    from streaming.base.stream import Stream
    from streaming.base.world import World

    stream = Stream(local=folder)
    with measured(row):
        shards = stream.get_shards(World(1, 1, 1, 0), False)
    row["shards"] = len(shards)


def order_ours(row: Row, folder: str, node: str) -> None:
    from mosaic_photon.dataloader.order.orders import Orders

    order = dataset_of(folder, node).order(512)
    with measured(row):
        orders = Orders(order, lambda: Path(node))
        orders.get(0)
    row["file_mib"] = orders.bytes / 2**20


def order_streaming(row: Row, folder: str, node: str) -> None:
    from streaming.base.batching import generate_work
    from streaming.base.world import World

    dataset = dataset_of(folder, node)
    dataset.batch_size = 512
    with measured(row):
        generate_work("random", dataset, World(1, 1, 1, 0), 0, 0)


def present(shards: int) -> int:
    return min(10_000, shards // PRESENT_SHARE)


def cache_ours(row: Row, folder: str, node: str) -> None:
    """Fetches of shards that are not here, each of which evicts another; the copy is part of it on both sides."""
    from mosaic_photon.dataloader.shards.room import Room

    shards = len(json.loads(Path(folder, "index.json").read_text())["shards"])
    cache = Path(tempfile.mkdtemp(dir=node))
    limit = present(shards) * Path(folder, "shard.0000000.mds").stat().st_size
    dataset = dataset_of_remote(folder, str(cache), node, limit)
    for shard_id in range(present(shards)):
        dataset.cache.ensure(shard_id)
    decisions: list[float] = []
    reserve = Room.reserve

    def timed(*args: Any) -> Any:
        begin = time.perf_counter()
        try:
            return reserve(*args)
        finally:
            decisions.append(time.perf_counter() - begin)

    Room.reserve = timed  # type: ignore[method-assign, assignment]
    with measured(row):
        for shard_id in range(present(shards), present(shards) + DECISIONS):
            dataset.cache.ensure(shard_id)
    row |= {"ms_each": 1000 * row["s"] / DECISIONS, "ms_decision": 1000 * float(np.median(decisions))}


def dataset_of_remote(folder: str, cache: str, node: str, limit: int) -> Any:
    from mosaic_photon.dataloader.dataset import ShardedDataset
    from mosaic_photon.dataloader.shards.settings import Settings, in_force

    with in_force(Settings(node_folder=node)):
        return ShardedDataset(remote=folder, local=cache, cache_limit=limit, num_canonical_nodes=64)


def cache_streaming(row: Row, folder: str, node: str) -> None:
    from streaming import StreamingDataset

    shards = len(json.loads(Path(folder, "index.json").read_text())["shards"])
    limit = present(shards) * Path(folder, "shard.0000000.mds").stat().st_size
    limit += Path(folder, "index.json").stat().st_size  # which Streaming counts
    dataset = StreamingDataset(remote=folder, local=tempfile.mkdtemp(dir=node), cache_limit=limit, batch_size=1)
    for shard_id in range(present(shards)):
        dataset.prepare_shard(shard_id)
    with measured(row):
        for shard_id in range(present(shards), present(shards) + DECISIONS):
            dataset.prepare_shard(shard_id)
    row["ms_each"] = 1000 * row["s"] / DECISIONS


def start_ours(row: Row, folder: str, node: str) -> None:
    """From nothing to the first batch of 8, shards here."""
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    from mosaic_photon.dataloader import build_mosaic_dataloader
    from mosaic_photon.job.tables import MosaicJobConfig

    assets = str(Path(__file__).parent.parent / "tests" / "assets" / "tokenizer")
    job, tokenizer = MosaicJobConfig(), HuggingFaceTokenizer(assets)
    dataset = {"local": folder, "shuffle": True, "max_seq_len": TOKENS}
    job.mosaic.dataloader = {"name": "text", "drop_last": True, "num_workers": 0, "dataset": dataset}
    job.mosaic.node_folder, job.model.hf_assets_path = node, assets
    job.training.local_batch_size, job.training.seq_len = 8, TOKENS
    with measured(row):
        loader = build_mosaic_dataloader(1, 0, tokenizer, job)
        next(iter(loader))
    loader.close()


def start_streaming(row: Row, folder: str, node: str) -> None:
    from streaming import StreamingDataset

    with measured(row):
        dataset = StreamingDataset(local=folder, shuffle=True, batch_size=8)
        samples = iter(dataset)
        for _ in range(8):
            next(samples)
    os._exit(print(json.dumps(row), flush=True) or 0)  # its threads would wait for who takes the rest


def simulate(row: Row, folder: str, node: str) -> None:
    """128 nodes of 8 ranks, 10^9 samples: what a node needs, and what its ranks do for it."""
    from mosaic_photon.dataloader.need import Places
    from mosaic_photon.dataloader.order.deal import Layout, blocks_of_batches, nodes_of_ranks, places_of_mesh, seats
    from mosaic_photon.dataloader.order.epoch import EpochOrder, StreamPart
    from mosaic_photon.dataloader.order.orders import Orders

    nodes, per_node, shards, shard_bytes = 128, 8, 10**6, 67 << 20
    sizes = np.full(shards, SAMPLES_PER_SHARD, np.int64)
    stream = StreamPart("data", sizes, 0, shards * SAMPLES_PER_SHARD, 1.0)
    order = EpochOrder((stream,), "random", 4096, nodes, True, 1, "py1e", 9176, 1 << 18)
    begin = time.perf_counter()
    needed = order.shards_of_nodes(0, nodes)
    row["foreseen_s"] = time.perf_counter() - begin
    row |= {"shards_of_a_node": max(map(len, needed)), "tb_of_a_node": max(map(len, needed)) * shard_bytes / 1e12}
    made: Row = {}
    with measured(made):
        ids = Orders(order, lambda: Path(node)).get(0)
    row |= {f"order_{name}": value for name, value in made.items()} | {"order_gb": ids.nbytes / 1e9}
    places: Places = places_of_mesh(nodes * per_node, per_node, nodes * per_node, 1)
    turns, found = seats(nodes_of_ranks(places)), set()
    for rank in range(per_node):
        own: Row = {}
        layout = Layout(nodes * per_node, rank, 4, 4096, 1, turns)
        with measured(own):
            for block in blocks_of_batches(ids, 0, layout):
                found |= set(np.unique(block // SAMPLES_PER_SHARD).tolist())
    row |= {"shards_of_a_nodes_batches": len(found), "plan_s_of_a_rank": own["s"], "plan_mib_of_a_rank": own["mib"]}


PROBES: dict[str, Callable[[Row, str, str], None]] = {
    f.__name__: f
    for f in (
        index_ours, index_streaming, order_ours, order_streaming, cache_ours, cache_streaming, start_ours,
        start_streaming, simulate,
    )
}  # fmt: skip


def probe(name: str, folder: Path, node: Path) -> Row:
    """The figures of a process of its own."""
    command = [sys.executable, __file__, "--probe", name, str(folder), str(node)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def powers(first: int, last: int) -> list[int]:
    return [10**n for n in range(round(math.log10(first)), round(math.log10(last)) + 1)]


class Table:
    """Rows of figures as Markdown, with the slope of each between the two largest sizes."""

    def __init__(self, title: str, columns: dict[str, str]) -> None:
        self.columns, self.rows = columns, dict[str, list[tuple[int, Row]]]()
        print(f"\n## {title}\n\n| who | size | {' | '.join(columns.values())} |")
        print("|---" * (2 + len(columns)) + "|")

    def add(self, who: str, size: int, row: Row) -> None:
        self.rows.setdefault(who, []).append((size, row))
        shown = (f"{row[name]:.3g}" if name in row else "" for name in self.columns)
        print(f"| {who} | {size:,} | {' | '.join(shown)} |", flush=True)

    def slopes(self) -> None:
        for who, rows in self.rows.items():
            if len(rows) < 2:
                continue
            (small, before), (large, after) = rows[-2:]
            shown = []
            for name in self.columns:
                a, b = before.get(name, 0), after.get(name, 0)
                shown.append(f"{math.log(b / a) / math.log(large / small):.2f}" if a > 0 and b > 0 else "")
            print(f"| {who} | slope | {' | '.join(shown)} |", flush=True)


CLOCK = {"s": "s", "cpu_s": "CPU s", "mib": "MiB", "peak_mib": "MiB at the peak"}


def index_table(args: argparse.Namespace, root: Path, node: Path) -> None:
    table = Table("Index: shards of an index.json opened", CLOCK)
    for shards in powers(1000, args.largest_index):
        folder = write_index(root / f"index-{shards}", shards, 8000, 65_000_000)
        table.add("first rank of a node", shards, probe("index_ours", folder, node))
        table.add("another rank", shards, probe("index_ours", folder, node))
        if shards <= args.streaming_index:
            table.add("Streaming, each rank", shards, probe("index_streaming", folder, node))
        shutil.rmtree(folder)
    table.slopes()


def order_table(args: argparse.Namespace, root: Path, node: Path) -> None:
    table = Table("Order of an epoch: samples, 64 canonical nodes, py1e", CLOCK | {"file_mib": "MiB of the file"})
    for samples in powers(10_000, args.largest_order):
        shards = max(1, samples // SAMPLES_PER_SHARD)
        folder = write_index(root / f"order-{samples}", shards, SAMPLES_PER_SHARD, 65_000_000)
        table.add("first rank of a node", samples, probe("order_ours", folder, node))
        table.add("another rank", samples, probe("order_ours", folder, node))
        if samples <= args.streaming_order:
            table.add("Streaming, each rank", samples, probe("order_streaming", folder, node))
        shutil.rmtree(folder)
    table.slopes()


def eviction_table(args: argparse.Namespace, root: Path, node: Path) -> None:
    columns = {"ms_decision": "ms a decision", "ms_each": "ms a fetch with it", "cpu_s": f"CPU s of {DECISIONS}"}
    table = Table("Eviction: shards, a tenth of them (10,000 at most) in the cache", columns)
    for shards in powers(1000, args.largest_cache):
        folder = write_shards(root / f"cache-{shards}", shards, 10)
        table.add("ours", shards, probe("cache_ours", folder, node))
        if shards <= args.streaming_cache:
            table.add("Streaming", shards, probe("cache_streaming", folder, node))
        shutil.rmtree(folder)
    table.slopes()


def start_table(args: argparse.Namespace, root: Path, node: Path) -> None:
    table = Table("Start: shards of 100 samples that are here, to the first batch", CLOCK)
    for shards in powers(1000, args.largest_cache):
        folder = write_shards(root / f"start-{shards}", shards, 100)
        table.add("first rank of a node", shards, probe("start_ours", folder, node))
        table.add("second start", shards, probe("start_ours", folder, node))
        if shards <= args.streaming_cache:
            table.add("Streaming", shards, probe("start_streaming", folder, node))
        shutil.rmtree(folder)
    table.slopes()


def simulation(args: argparse.Namespace, root: Path, node: Path) -> None:
    if not args.simulate:
        return
    print("\n## 128 nodes of 8 ranks, 10^9 samples in 10^6 shards of 67 MiB, 128 canonical nodes\n")
    for name, value in probe("simulate", root, node).items():
        print(f"- {name.replace('_', ' ')}: {value:,.4g}", flush=True)


TABLES = {"index": index_table, "order": order_table, "eviction": eviction_table, "start": start_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"order": (10**8, 10**7), "index": (10**6, 10**5), "cache": (10**5, 10**4)}
    for name, (ours, theirs) in defaults.items():
        parser.add_argument(f"--largest-{name}", type=int, default=ours)
        parser.add_argument(f"--streaming-{name}", type=int, default=theirs)
    parser.add_argument("--only", choices=TABLES, nargs="*", default=list(TABLES), help="tables (default: all)")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--probe", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        row: Row = {}
        PROBES[args.probe[0]](row, *args.probe[1:])
        print(json.dumps(row))
        return
    import streaming
    import torch

    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} CPUs (load {load:.1f} before), Python {platform.python_version()},")
    print(f"torch {torch.__version__}, mosaicml-streaming {streaming.__version__}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        root, node = Path(folder), Path(folder, "node")
        node.mkdir()
        for name in args.only:
            TABLES[name](args, root, node)
        simulation(args, root, node)


if __name__ == "__main__":
    main()
