"""What `bench_scale.py` measures, a process each: `python benchmarks/scale_probes.py NAME FOLDER NODE`."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ASSETS = str(Path(__file__).parent.parent / "tests" / "assets" / "tokenizer")
SAMPLES_PER_SHARD = 1000
TOKENS = 16
PRESENT_SHARE = 10
"""Of the shards, one in this many is in the cache when others are fetched; at most 10,000."""
DECISIONS = 50
RAMP = [{"a": 0.8, "b": 0.2}, {"a": 0.2, "b": 0.3, "c": 0.5}]
"""Shares of streams where a ramp of stages begins and ends."""
Row = dict[str, Any]


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


def listed(folder: str | Path) -> list[dict[str, Any]]:
    """The shards of an index.json."""
    shards: list[dict[str, Any]] = json.loads(Path(folder, "index.json").read_text())["shards"]
    return shards


def present(folder: str) -> tuple[int, int]:
    """How many shards are in the cache when others are fetched, and their bytes."""
    shards = min(10_000, len(listed(folder)) // PRESENT_SHARE)
    return shards, shards * Path(folder, "shard.0000000.mds").stat().st_size


def cache_ours(row: Row, folder: str, node: str) -> None:
    """Fetches of shards that are not here, each of which evicts another; the copy is part of it on both sides."""
    from mosaic_photon.dataloader.shards.room import Room

    shards, limit = present(folder)
    dataset = dataset_of(node, remote=folder, local=tempfile.mkdtemp(dir=node), cache_limit=limit)
    for shard_id in range(shards):
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
        for shard_id in range(shards, shards + DECISIONS):
            dataset.cache.ensure(shard_id)
    row |= {"ms_each": 1000 * row["s"] / DECISIONS, "ms_decision": 1000 * float(np.median(decisions))}


def cache_streaming(row: Row, folder: str, node: str) -> None:
    from streaming import StreamingDataset

    shards, limit = present(folder)
    limit += Path(folder, "index.json").stat().st_size  # which Streaming counts
    dataset = StreamingDataset(remote=folder, local=tempfile.mkdtemp(dir=node), cache_limit=limit, batch_size=1)
    for shard_id in range(shards):
        dataset.prepare_shard(shard_id)
    with measured(row):
        for shard_id in range(shards, shards + DECISIONS):
            dataset.prepare_shard(shard_id)
    row["ms_each"] = 1000 * row["s"] / DECISIONS


def loader_of(node: str, dataset: dict[str, Any], tokens: int, batch: int = 8, **mosaic: Any) -> Any:
    """Our loader of micro-batches of 8, in one process."""
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    from mosaic_photon.dataloader import build_mosaic_dataloader
    from mosaic_photon.job.tables import MosaicJobConfig

    job, tokenizer = MosaicJobConfig(), HuggingFaceTokenizer(ASSETS)
    dataset = {"shuffle": True, "max_seq_len": tokens, **dataset}
    vars(job.mosaic).update(mosaic, node_folder=node)
    job.mosaic.dataloader = {"name": "text", "drop_last": True, "num_workers": 0, "dataset": dataset}
    job.model.hf_assets_path = ASSETS
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


def locality_ours(row: Row, folder: str, node: str, ramp: bool) -> None:
    """The largest part of the shards that any of some nodes reads while as much is read as the streams hold."""
    from mosaic_photon.dataloader.need import shards_of_stages

    dataset = {"streams": {name: {"local": folder, "split": name} for name in "abc"}, "num_canonical_nodes": 64}
    steps = sum(1 for _ in Path(folder).glob("*/*.mds")) * SAMPLES_PER_SHARD // 512
    make = partial(ramp_of, steps=steps) if ramp else loader_of
    loader = make(node, dataset, TOKENS - 2, batch=512)
    for nodes in (2, 4, 16, 32):
        found = shards_of_stages(loader.plan, loader.data.dataset, loader.plan.end(0), nodes)
        row[f"of_{nodes}"] = max(map(len, found)) / len(loader.data.dataset.shards)
    loader.close()


def batches_ours(row: Row, folder: str, node: str, ramp: bool) -> None:
    """Batches of 8 samples of 2048 tokens through two epochs: in both the samples of two are looked up in them."""
    from bench_loader import BATCH, SEQ_LEN

    sets = {name: {"local": folder, "split": name} for name in "abc"}
    samples = sum(shard["samples"] for shard in listed(Path(folder, "all")))
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
    job.model.hf_assets_path = ASSETS
    job.training.local_batch_size, job.training.seq_len = 1, TOKENS - 2
    job.training.steps = len(listed(folder)) * SAMPLES_PER_SHARD // 512
    with measured(row):
        run = open_run(job, 64, 8)
        step = run.deal(job.training.steps // 2)
        run.described(step)
    begin = time.perf_counter()
    assert [one.step for one in run.seen(step.ids[:1], id)] == [step.step]
    row["sample_s"] = time.perf_counter() - begin
    run.close()


def text_ours(row: Row, folder: str, node: str) -> None:
    """A text that is nowhere, looked for in all samples of 2049 tokens."""
    from mosaic_photon.job.tables import MosaicJobConfig
    from mosaic_photon.use.trace import open_run
    from mosaic_photon.use.trace_text import find_text

    job = MosaicJobConfig()
    job.mosaic.dataloader = {"name": "text", "drop_last": True, "num_workers": 0, "dataset": {"local": folder}}
    job.mosaic.node_folder = node
    job.model.hf_assets_path = str(Path(__file__).parent.parent / "tests" / "assets" / "tokenizer")
    job.training.local_batch_size, job.training.seq_len, job.training.steps = 8, 2048, 10
    run = open_run(job, 1, 1)
    with measured(row):
        assert not find_text(run, "a text that is nowhere in these data", id)
    row["mib_s"] = sum(path.stat().st_size for path in Path(folder).glob("*.mds")) / 2**20 / row["s"]
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
    trace_ours, text_ours, numbers_ours, simulate)}  # fmt: skip
PROBES |= {f"step_ours_{ranks}": partial(step_ours, ranks=ranks) for ranks in (1, 8)}
PROBES |= {f"locality_{name}": partial(locality_ours, ramp=name == "ramp") for name in ("ramp", "static")}
PROBES |= {"batches_ramp": partial(batches_ours, ramp=True), "batches_static": partial(batches_ours, ramp=False)}


def main(name: str, folder: str, node: str) -> None:
    row = Row()
    PROBES[name](row, folder, node)
    print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
