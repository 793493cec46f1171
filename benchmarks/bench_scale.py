"""What the data plane costs as data sets and jobs grow: index, an epoch's order, eviction, start-up, trace and stages.

    python benchmarks/bench_scale.py [--repeats 5] [--largest-order 100000000] [--streaming-order 10000000]
        [--largest-index 1000000] [--streaming-index 100000] [--largest-cache 100000] [--streaming-cache 10000]
        [--only index order eviction start trace stages] [--simulate]

Each figure is of a process of its own, Streaming's of its own code on the same files in the same run: medians of rounds
in which they take turns, each on an empty node folder, and the median ratio of ours to Streaming's in a round. "Another
rank" belongs to the run of the first one of its node, a "second start" does not. Seconds are of the clock, with those
of the CPU; MiB are the growth of the process's proportional set (PSS) at its end, and of its peak; the slope says by
which power of the size a cost grows between the two largest. `--simulate` foresees a job of 128 nodes of 8 ranks on
10^9 samples in 10^6 shards with 128 canonical nodes, and makes the order of its first epoch, 4 GB.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES_PER_SHARD = 1000
TOKENS = 16
PRESENT_SHARE = 10
"""Of the shards, one in this many is in the cache when others are fetched; at most 10,000."""
DECISIONS = 50
RAMP = [{"a": 0.8, "b": 0.2}, {"a": 0.2, "b": 0.3, "c": 0.5}]
"""Shares of streams where a ramp of stages begins and ends."""
Row = dict[str, Any]
Probes = dict[str, tuple[str, float]]


def write_index(folder: Path, shards: int, samples: int, size: int, compressed: bool = False) -> Path:
    """An index.json of many shards, whose files need not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    column = {"column_names": ["tokens"], "column_encodings": [f"ndarray:int32:{TOKENS}"], "column_sizes": [4 * TOKENS]}
    with (folder / "index.json").open("w") as file:
        file.write('{"shards": [')
        for number in range(shards):
            name, hashes = f"shard.{number:07}.mds", {"xxh64": f"{number:016x}"}
            entry = {"version": 2, "format": "mds", "samples": samples, **column, "hashes": ["xxh64"]}
            entry |= {"raw_data": {"basename": name, "bytes": size, "hashes": hashes}, "size_limit": None}
            packed = {"basename": f"{name}.zstd", "bytes": size // 2, "hashes": hashes} if compressed else None
            entry |= {"zip_data": packed, "compression": "zstd" if compressed else None}
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


def dataset_of(node: str, **settings: Any) -> Any:
    from mosaic_photon.dataloader.dataset import ShardedDataset
    from mosaic_photon.dataloader.node.settings import Settings, in_force

    with in_force(Settings(node_folder=node)):
        return ShardedDataset({"num_canonical_nodes": 64, **settings})


def index_ours(row: Row, folder: str, node: str) -> None:
    import mosaic_photon.dataloader.dataset  # noqa: F401

    with measured(row):
        _ = dataset_of(node, local=folder, shuffle=True)


def index_streaming(row: Row, folder: str, node: str) -> None:
    from streaming.base.stream import Stream
    from streaming.base.world import World

    stream = Stream(local=folder)
    with measured(row):
        _ = stream.get_shards(World(1, 1, 1, 0), False)  # held while memory is taken


def order_ours(row: Row, folder: str, node: str) -> None:
    from mosaic_photon.dataloader.order.orders import Orders

    order = dataset_of(node, local=folder, shuffle=True).order(512)
    with measured(row):
        orders = Orders(order, lambda: Path(node))
        orders.get(0)
    row["file_mib"] = orders.bytes / 2**20


def order_streaming(row: Row, folder: str, node: str) -> None:
    from streaming import StreamingDataset
    from streaming.base.batching import generate_work
    from streaming.base.world import World

    dataset = object.__new__(StreamingDataset)  # over our index
    more = {"batch_size": 512, "num_streams": 1, "epoch_seed_change": True, "initial_physical_nodes": None}
    vars(dataset).update(vars(dataset_of(node, local=folder, shuffle=True)), **more)
    with measured(row):
        generate_work("random", dataset, World(1, 1, 1, 0), 0, 0)


def present(shards: int) -> int:
    return min(10_000, shards // PRESENT_SHARE)


def cache_ours(row: Row, folder: str, node: str) -> None:
    """Fetches of shards that are not here, each of which evicts another; the copy is part of it on both sides."""
    from mosaic_photon.dataloader.shards.room import Room

    shards = len(json.loads(Path(folder, "index.json").read_text())["shards"])
    limit = present(shards) * Path(folder, "shard.0000000.mds").stat().st_size
    dataset = dataset_of(node, remote=folder, local=tempfile.mkdtemp(dir=node), cache_limit=limit)
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


def loader_of(node: str, dataset: dict[str, Any], tokens: int, batch: int = 8, **mosaic: Any) -> Any:
    """Our loader of micro-batches of 8, in one process."""
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    from mosaic_photon.dataloader import build_mosaic_dataloader
    from mosaic_photon.job.tables import MosaicJobConfig

    assets = str(Path(__file__).parent.parent / "tests" / "assets" / "tokenizer")
    job, tokenizer = MosaicJobConfig(), HuggingFaceTokenizer(assets)
    dataset = {"shuffle": True, "max_seq_len": tokens, **dataset}
    vars(job.mosaic).update(mosaic, node_folder=node)
    job.mosaic.dataloader = {"name": "text", "drop_last": True, "num_workers": 0, "dataset": dataset}
    job.model.hf_assets_path = assets
    job.training.local_batch_size, job.training.global_batch_size, job.training.seq_len = 8, batch, tokens
    return build_mosaic_dataloader(1, 0, tokenizer, job)


def start_ours(row: Row, folder: str, node: str) -> None:
    """From nothing to the first batch of 8, shards here."""
    from torchtitan.components.tokenizer import HuggingFaceTokenizer  # noqa: F401

    from mosaic_photon.dataloader import build_mosaic_dataloader  # noqa: F401

    with measured(row):
        loader = loader_of(node, {"local": folder}, TOKENS)
        next(iter(loader))
    loader.close()


def numbers_ours(row: Row, folder: str, node: str) -> None:
    """The numbers by step of 8 streams in a ramp, which a node makes once."""
    from fractions import Fraction

    from mosaic_photon.dataloader.order.stages import Numbers, Stage

    first, last = (tuple(Fraction(one, 36) for one in weights) for weights in (range(1, 9), range(8, 0, -1)))
    steps = int(Path(folder, "steps").read_text())
    with measured(row):
        Numbers(Stage(last, steps, first), 512, lambda: Path(node)).between(steps, steps)


def ramp_of(node: str, dataset: dict[str, Any], tokens: int, batch: int, steps: int) -> Any:
    """A loader of three streams in a ramp of so many steps."""
    begin, end = RAMP
    stages = [{"duration": "1ba", "proportion": begin}, {"duration": f"{steps}ba", "ramp": True, "proportion": end}]
    return loader_of(node, dataset, tokens, batch, stages=[*stages, {"proportion": end}])


def step_ours(row: Row, folder: str, node: str, ranks: int) -> None:
    """What a rank's samples of a step of 512 cost in a ramp of three streams, orders and numbers there."""
    from mosaic_photon.dataloader.order.deal import Layout

    steps = 1000
    dataset = {"streams": {name: {"local": folder, "split": name} for name in "abc"}, "num_canonical_nodes": 64}
    loader = ramp_of(node, dataset, TOKENS - 2, 512, 8 * steps)
    layout = Layout(ranks, 0, 8, 512, 1, ())
    for _ in loader.plan.blocks(1, 1 + steps, layout):
        pass
    with measured(row):
        for _ in loader.plan.blocks(1 + steps, 1 + 2 * steps, layout):
            pass
    row |= {"us": 1e6 * row["s"] / steps, "cpu_us": 1e6 * row["cpu_s"] / steps}
    loader.close()


def batches_ours(row: Row, folder: str, node: str, ramp: bool) -> None:
    """Batches of 8 samples of 2048 tokens through two epochs: in both the samples of two are looked up in them."""
    from bench_loader import BATCH, SEQ_LEN

    sets = {name: {"local": folder, "split": name} for name in "abc"}
    samples = sum(shard["samples"] for shard in json.loads(Path(folder, "all", "index.json").read_text())["shards"])
    batches = 2 * (samples // BATCH)
    if ramp:
        loader = ramp_of(node, {"streams": sets}, SEQ_LEN + 1, BATCH, batches + 200)
    else:
        loader = loader_of(node, {"local": folder, "split": "all"}, SEQ_LEN + 1)
    gc.disable()  # as TorchTitan does, which collects garbage between steps
    iterator = iter(loader)
    for _ in range(100):
        next(iterator)
    with measured(row):
        for _ in range(batches):
            next(iterator)
    row |= {"rate": batches / row["s"], "cpu_ms": 1000 * row["cpu_s"] / batches}
    loader.close()


def trace_ours(row: Row, folder: str, node: str) -> None:
    """A step in the middle of an epoch, for 512 ranks on 64 nodes, its texts read; and the steps that see a sample."""
    from mosaic_photon.job.tables import MosaicJobConfig
    from mosaic_photon.use.trace import open_run

    job, dataset = MosaicJobConfig(), {"local": folder, "shuffle": True, "num_canonical_nodes": 64}
    job.mosaic.dataloader = {"name": "text", "drop_last": True, "num_workers": 0, "dataset": dataset}
    job.mosaic.node_folder = node
    job.model.hf_assets_path = str(Path(__file__).parent.parent / "tests" / "assets" / "tokenizer")
    job.training.local_batch_size, job.training.seq_len = 1, TOKENS - 2
    shards = len(json.loads(Path(folder, "index.json").read_text())["shards"])
    job.training.steps = shards * SAMPLES_PER_SHARD // 512
    with measured(row):
        run = open_run(job, 64, 8)
        step = run.deal(job.training.steps // 2)
        run.described(step)
    begin = time.perf_counter()
    assert [one.step for one in run.seen(step.ids[:1], id)] == [step.step]
    row["sample_s"] = time.perf_counter() - begin
    run.close()


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
    foreseen, made = Row(), Row()
    with measured(foreseen):
        most = max(map(len, order.shards_of_nodes(0, nodes)))
    row |= {"foreseen_s": foreseen["s"], "shards_of_a_node": most, "tb_of_a_node": most * shard_bytes / 1e12}
    with measured(made):
        ids = Orders(order, lambda: Path(node)).get(0)
    row |= {f"order_{name}": value for name, value in made.items()} | {"order_gb": ids.nbytes / 1e9}
    places: Places = places_of_mesh(nodes * per_node, per_node, nodes * per_node, 1)
    turns, found = seats(nodes_of_ranks(places)), set()
    for rank in range(per_node):
        own, layout = Row(), Layout(nodes * per_node, rank, 4, 4096, 1, turns)
        with measured(own):
            for block in blocks_of_batches(ids, 0, layout):
                found |= set(np.unique(block // SAMPLES_PER_SHARD).tolist())
    row |= {"shards_of_a_nodes_batches": len(found), "plan_s_of_a_rank": own["s"], "plan_mib_of_a_rank": own["mib"]}


PROBES: dict[str, Callable[[Row, str, str], None]] = {f.__name__: f for f in (
    index_ours, index_streaming, order_ours, order_streaming, cache_ours, cache_streaming, start_ours, start_streaming,
    trace_ours, numbers_ours, simulate)}  # fmt: skip
PROBES |= {f"step_ours_{ranks}": partial(step_ours, ranks=ranks) for ranks in (1, 8)}
PROBES |= {"batches_ramp": partial(batches_ours, ramp=True), "batches_static": partial(batches_ours, ramp=False)}


def probe(name: str, folder: Path, node: Path, **environment: str) -> Row:
    """The figures of a process of its own."""
    command = [sys.executable, __file__, "--probe", name, str(folder), str(node)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
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

    def measure(self, size: int, folder: Path, node: Path, probes: dict[str, str], repeats: int) -> None:
        """Medians over rounds of all `probes`, by whose they are; ratios of the first one's to a peer's."""
        rounds: dict[str, list[Row]] = {who: [] for who in probes}
        for _ in range(repeats):
            shutil.rmtree(node, ignore_errors=True)
            node.mkdir()
            for who, name in probes.items():
                rounds[who].append(probe(name, folder, node, **RUN.get(who, {})))
        for who, rows in rounds.items():
            row = {name: statistics.median(found[name] for found in rows) for name in rows[0]}
            self.rows.setdefault(who, []).append((size, row))
            self._show(who, f"{size:,}", row)
        ours, *others = rounds
        for theirs in (who for who in others if who.startswith(PEERS)):
            pairs = list(zip(rounds[ours], rounds[theirs], strict=True))
            shared = [name for name in self.columns if all(a.get(name) and b.get(name, 0) > 0 for a, b in pairs)]
            ratios = {name: statistics.median(a[name] / b[name] for a, b in pairs) for name in shared}
            self._show(f"{ours} / {theirs}", f"{size:,}", ratios)

    def _show(self, who: str, size: str, row: Row) -> None:
        shown = (f"{row[name]:.3g}" if name in row else "" for name in self.columns)
        print(f"| {who} | {size} | {' | '.join(shown)} |", flush=True)

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


STATIC = "one static stream"
PEERS = ("Streaming", STATIC)
FIRST, OTHER = "first rank of a node", "another rank"
RUN = {FIRST: {"LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "0"}, OTHER: {"LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "1"}}
CLOCK = {"s": "s", "cpu_s": "CPU s", "mib": "MiB", "peak_mib": "MiB at the peak"}


def fill(
    table: Table, args: argparse.Namespace, node: Path, sizes: list[int], write: Callable[..., Path], probes: Probes
) -> None:
    """Measure each size by the probes, each up to the size that it is given with."""
    for size in sizes:
        folder = write(node.with_name("data"), size)
        chosen = {who: name for who, (name, most) in probes.items() if size <= most}
        table.measure(size, folder, node, chosen, args.repeats)
        shutil.rmtree(folder)
    table.slopes()


def index_table(args: argparse.Namespace, node: Path) -> None:
    probes: Probes = {who: ("index_ours", math.inf) for who in (FIRST, OTHER)}
    probes["Streaming, each rank"] = "index_streaming", args.streaming_index
    for packed in (False, True):
        table = Table(f"Index: {'compressed shards without a cache' if packed else 'shards'} of an index.json", CLOCK)
        write = partial(write_index, samples=8000, size=65_000_000, compressed=packed)
        fill(table, args, node, powers(1000, args.largest_index), write, probes)


def order_table(args: argparse.Namespace, node: Path) -> None:
    def write(folder: Path, samples: int) -> Path:
        return write_index(folder, max(1, samples // SAMPLES_PER_SHARD), SAMPLES_PER_SHARD, 65_000_000)

    table = Table("Order of an epoch: samples, 64 canonical nodes, py1e", CLOCK | {"file_mib": "MiB of the file"})
    probes: Probes = {who: ("order_ours", math.inf) for who in (FIRST, OTHER)}
    probes["Streaming, each rank"] = "order_streaming", args.streaming_order
    fill(table, args, node, powers(10_000, args.largest_order), write, probes)


def eviction_table(args: argparse.Namespace, node: Path) -> None:
    columns = {"ms_decision": "ms a decision", "ms_each": "ms a fetch with it", "cpu_s": f"CPU s of {DECISIONS}"}
    table = Table("Eviction: shards, a tenth of them (10,000 at most) in the cache", columns)
    probes: Probes = {"ours": ("cache_ours", math.inf), "Streaming": ("cache_streaming", args.streaming_cache)}
    fill(table, args, node, powers(1000, args.largest_cache), partial(write_shards, samples=10), probes)


def start_table(args: argparse.Namespace, node: Path) -> None:
    table = Table("Start: shards of 100 samples that are here, to the first batch", CLOCK)
    probes: Probes = {who: ("start_ours", math.inf) for who in (FIRST, "second start")}
    probes["Streaming"] = "start_streaming", args.streaming_cache
    fill(table, args, node, powers(1000, args.largest_cache), partial(write_shards, samples=100), probes)


def trace_table(args: argparse.Namespace, node: Path) -> None:
    def write(folder: Path, samples: int) -> Path:
        return write_shards(folder, samples // SAMPLES_PER_SHARD, SAMPLES_PER_SHARD)

    table = Table("Trace: samples; a step of 512 of them", CLOCK | {"sample_s": "s for the steps of a sample"})
    probes: Probes = {who: ("trace_ours", math.inf) for who in ("order to be made", "order there")}
    fill(table, args, node, powers(1_000_000, args.largest_order), write, probes)


def stages_table(args: argparse.Namespace, node: Path) -> None:
    from bench_loader import write_data

    def write_steps(folder: Path, steps: int) -> Path:
        folder.mkdir()
        (folder / "steps").write_text(str(steps))
        return folder

    def write_sets(folder: Path, batch: int) -> Path:
        folder.mkdir()
        for name in "abc":
            write_shards(folder / name, 2 * batch, SAMPLES_PER_SHARD)
        return folder

    def write_streams(folder: Path, samples: int) -> Path:
        folder.mkdir()
        for name, part in (("all", 1), *((name, 3) for name in "abc")):
            write_data(folder / name, samples // part)
        return folder

    table = Table("Stages: steps of a ramp of 8 streams, whose numbers are made once a node", CLOCK)
    fill(table, args, node, powers(10_000, 10**6), write_steps, {FIRST: ("numbers_ours", math.inf)})
    table = Table("Stages: samples of a step, three streams in a ramp", {"us": "µs a step", "cpu_us": "CPU µs a step"})
    probes: Probes = {f"a rank of {ranks}": (f"step_ours_{ranks}", math.inf) for ranks in (1, 8)}
    fill(table, args, node, [512], write_sets, probes)
    table = Table("Stages: samples of 2048 tokens, 8 a batch", {"rate": "batches/s", "cpu_ms": "CPU ms a batch"})
    probes = {"three streams in a ramp": ("batches_ramp", math.inf), STATIC: ("batches_static", math.inf)}
    fill(table, args, node, [18 * 1022], write_streams, probes)


def simulation(root: Path, node: Path) -> None:
    print("\n## 128 nodes of 8 ranks, 10^9 samples in 10^6 shards of 67 MiB, 128 canonical nodes\n")
    for name, value in probe("simulate", root, node).items():
        print(f"- {name.replace('_', ' ')}: {value:,.4g}", flush=True)


TABLES = {
    "index": index_table,
    "order": order_table,
    "eviction": eviction_table,
    "start": start_table,
    "trace": trace_table,
    "stages": stages_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"order": (10**8, 10**7), "index": (10**6, 10**5), "cache": (10**5, 10**4)}
    for name, (ours, theirs) in defaults.items():
        parser.add_argument(f"--largest-{name}", type=int, default=ours)
        parser.add_argument(f"--streaming-{name}", type=int, default=theirs)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of which medians are taken (default: 5)")
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

    print(f"{platform.machine()}, {os.cpu_count()} CPUs (load {os.getloadavg()[0]:.1f} before), {args.repeats} rounds,")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, mosaicml-streaming {streaming.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        root, node = Path(folder), Path(folder, "node")
        node.mkdir()
        for name in args.only:
            TABLES[name](args, node)
        if args.simulate:
            simulation(root, node)


if __name__ == "__main__":
    main()
