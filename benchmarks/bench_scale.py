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
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scale_probes import DECISIONS, SAMPLES_PER_SHARD, Row, write_index, write_shards

Probes = dict[str, tuple[str, float]]


def probe(name: str, folder: Path, node: Path, **environment: str) -> Row:
    """The figures of a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("scale_probes.py")), name, str(folder), str(node)]
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
    table = Table("Trace: samples of 2049 tokens that a text is looked for in", {"s": "s", "mib_s": "MiB/s"})
    fill(table, args, node, [128 * 1022], write_rows, {"ours": ("text_ours", math.inf)})


def write_rows(folder: Path, samples: int) -> Path:
    """Samples of 2049 tokens in shards of 8 MB."""
    from bench_loader import write_data

    write_data(folder, samples)
    return folder


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
    columns = {f"of_{nodes}": f"{nodes} nodes" for nodes in (2, 4, 16, 32)}
    table = Table("Stages: part of the shards that a node reads, three streams, 64 canonical nodes", columns)
    probes = {who: (f"locality_{name}", math.inf) for who, name in (("a ramp", "ramp"), ("a static mixture", "static"))}
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
    args = parser.parse_args()
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
