"""How fast `mosaic-photon prepare` is, beside its tokenizer alone and others' tools, and what it holds as corpora grow.

    python benchmarks/bench_prepare.py [--mib 32] [--repeats 5] [--workers 2] [--datatrove PYTHON]
        [--files 1000 10000 100000] [--sizes 16 64 256] [--only speed growth] [--fast FOLDER]

Documents are the standard library's source files, each with a number before it, in JSONL of so many MiB. In each round
all take their turn, each as a process of its own that tokenizes the same files with the same tokenizer on as many
workers: `alone` reads and encodes them and keeps nothing. Seconds of the clock and of the CPU, imports included, are
medians; the share is the median of a round's, in which a busy machine is the same for all. `--datatrove` is a Python
that has datatrove[processing,io]. `growth` are calls for many small files, and for one of many MiB: what the process
that hands the parts out takes and holds, what its largest worker holds, and the largest record of a part. `--fast`
names the tokenizer of the large ones, for which a real one would take hours.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import pickle
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "tests" / "assets" / "tokenizer"
SEQ_LEN = 2047
PR_SET_CHILD_SUBREAPER = 36
FILES = 8
"""Of the corpus, so that tools that do not cut a file keep all workers busy."""


def write_corpus(folder: Path, mib: float, files: int = FILES) -> int:
    """JSONL files of so many MiB together; returns their bytes."""
    from mosaic_photon.prepare.sources import stdlib_files

    texts = [Path(file).read_text("utf-8") for file in stdlib_files()]
    folder.mkdir(parents=True)
    written, number = 0, 0
    streams = [(folder / f"{index}.jsonl").open("w") for index in range(files)]
    while written < mib * 2**20:
        line = json.dumps({"text": f"# {number}\n{texts[number % len(texts)]}"}) + "\n"
        written += streams[number % files].write(line)
        number += 1
    for stream in streams:
        stream.close()
    return written


def alone(folder: str, workers: int) -> None:
    """The tokenizer, fed as prepare feeds it."""
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        print(sum(pool.imap_unordered(_encode, sorted(map(str, Path(folder).iterdir())))))


def _encode(file: str) -> int:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    tokenizer, count = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")), 0
    with open(file) as lines:
        for line in lines:
            (encoding,) = tokenizer.encode_batch_fast([json.loads(line)["text"]], add_special_tokens=False)
            count += len(encoding.ids)
    return count


def foundry(folder: str, out: str) -> None:
    """llm-foundry's script, which has one process."""
    from llmfoundry.command_utils import convert_dataset_json_from_args

    convert_dataset_json_from_args(
        folder, out, None, SEQ_LEN + 1, "train", str(TOKENIZER), "<|bos|>", "<|eos|>", False, num_workers=1
    )


DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
folder, out, tokenizer, workers = sys.argv[1:]
steps = [JsonlReader(folder), DocumentTokenizer(out, tokenizer, shuffle_documents=False, eos_token="<|eos|>")]
if __name__ == "__main__":
    LocalPipelineExecutor(steps, tasks=8, workers=int(workers), logging_dir=out + ".logs").run()
"""


START = "prepare of a file of 16 KiB"
"""What it takes to start: Python's imports, most of all."""


def commands(args: argparse.Namespace, corpus: Path, out: Path) -> dict[str, list[str]]:
    """What runs each contender."""
    here, workers = [sys.executable, __file__, "--as"], str(args.workers)
    prepare = [sys.executable, "-m", "mosaic_photon.cli", "prepare", str(corpus), "--out", str(out)]
    prepare += ["--tokenizer", str(TOKENIZER), "--seq-len", str(SEQ_LEN), "--val", "0", "--workers", workers]
    found = {
        "the tokenizer alone": [*here, "alone", str(corpus), workers],
        "mosaic-photon prepare": prepare,
        START: [*prepare[:4], str(corpus.with_name("small.jsonl")), *prepare[5:]],
        "llm-foundry's script": [*here, "foundry", str(corpus), str(out)],
    }
    if args.datatrove:
        (script := out.with_name("datatrove_run.py")).write_text(DATATROVE)
        file = str(TOKENIZER / "tokenizer.json")
        found["datatrove's tokenizer"] = [args.datatrove, str(script), str(corpus), str(out), file, workers]
    return found


def timed(command: list[str], out: Path) -> tuple[float, float, float]:
    """Seconds of the clock and of the CPU, and MiB that the largest process held."""
    for left in (out, Path(f"{out}.logs")):
        shutil.rmtree(left, ignore_errors=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    measure = [sys.executable, __file__, "--as", "measure", *command]
    done = subprocess.run(measure, check=True, capture_output=True, text=True, env=environment)
    clock, cpu, memory = json.loads(done.stdout.splitlines()[-1])
    return clock, cpu, memory


def measure(command: list[str]) -> None:
    """Run it and print what it cost, with processes that it did not wait for."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    begin = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    if done.returncode:
        sys.exit(done.stderr)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps([time.monotonic() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))


def speed(args: argparse.Namespace, work: Path) -> Iterator[str]:
    """The table of rates."""
    size = write_corpus(work / "corpus", args.mib) / 2**20
    (work / "small.jsonl").write_text(json.dumps({"text": "def word(self): return 1\n" * 650}) + "\n")
    out, runs = work / "out", dict[str, list[tuple[float, float, float]]]()
    for number in range(args.repeats):
        for name, command in commands(args, work / "corpus", out).items():
            runs.setdefault(name, []).append(timed(command, out))
            print(f"round {number + 1}, {name}: {runs[name][-1]}", file=sys.stderr)
    base = runs["the tokenizer alone"]
    yield f"{size:.0f} MiB of documents, {args.workers} workers, medians of {args.repeats} rounds:\n"
    yield "| | clock | CPU | MiB a second | MiB a CPU second | of the tokenizer alone: by the clock | by the CPU |"
    yield "|---|---|---|---|---|---|---|"
    for name, own in runs.items():
        clock, cpu = (statistics.median(run[column] for run in own) for column in (0, 1))
        pairs = list(zip(base, own, strict=True))
        shares = [statistics.median(one[column] / run[column] for one, run in pairs) for column in (0, 1)]
        rates = (
            f"{size / clock:.2f} | {size / cpu:.2f} | {shares[0]:.0%} | {shares[1]:.0%}" if name != START else "| | |"
        )
        yield f"| {name} | {clock:.1f} s | {cpu:.1f} s | {rates} |"
    ours, start = runs["mosaic-photon prepare"], runs[START]
    rest = [one[1] / (own[1] - first[1]) for one, own, first in zip(base, ours, start, strict=True)]
    yield f"\nprepare without what it takes to start: {statistics.median(rest):.0%} of the tokenizer alone by the CPU"


def growth(args: argparse.Namespace, work: Path) -> Iterator[str]:
    """The table of what it takes as files become many, or one becomes large."""
    yield "| corpus | clock | CPU | handing out: its CPU | its memory | above that of the first | a worker's | record |"
    yield "|---|---|---|---|---|---|---|---|"
    for kind, counts in (("files of 250 bytes", args.files), ("MiB in one file", args.sizes)):
        first = None
        for count in counts:
            folder = work / f"{count}"
            if kind.startswith("files"):
                small_files(folder, count)
            else:
                write_corpus(folder, count, files=1)
            given = str(args.fast if kind.startswith("MiB") else TOKENIZER)
            clock, cpu, own, memory, worker, record = alone_in_a_process(folder, work / "grown", given, args.workers)
            first = memory if first is None else first
            yield (
                f"| {count:,} {kind} | {clock:.1f} s | {cpu:.1f} s | {own:.1f} s | {memory:.0f} MiB |"
                f" {memory - first:.0f} MiB | {worker:.0f} MiB | {record / 1024:.1f} KiB |"
            )
            shutil.rmtree(folder)


def small_files(folder: Path, count: int) -> None:
    """JSONL of a line each, a thousand a folder."""
    line = json.dumps({"text": "def word(self): return 1\n" * 10})
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:04}").mkdir(parents=True)
        (folder / f"{number // 1000:04}" / f"{number:07}.jsonl").write_text(line + "\n")


def alone_in_a_process(folder: Path, out: Path, tokenizer: str, workers: int) -> list[float]:
    """Seconds by the clock, of the CPU, of the driver's; its peak and a worker's in MiB, a record's bytes at most."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--as", "driver", str(folder), str(out), tokenizer, str(workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    numbers: list[float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def driver(folder: str, out: str, tokenizer: str, workers: str) -> None:
    """One call, and what its own process took."""
    from mosaic_photon.cli import prepare as command
    from mosaic_photon.prepare.run import prepare

    begin, parser = time.monotonic(), argparse.ArgumentParser()
    command.add_arguments(parser)
    words = ["--out", out, "--tokenizer", tokenizer, "--seq-len", str(SEQ_LEN), "--val", "0", "--workers", workers]
    work = command.check(parser.parse_args([*words, folder]))
    prepare(work)
    clock, own = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF)
    below = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime
    record = max(len(pickle.dumps((number, part, work.how, out))) for number, part in enumerate(work.parts()))
    memory = own.ru_maxrss / 1024, below.ru_maxrss / 1024
    print(json.dumps([clock, cpu + below.ru_utime + below.ru_stime, cpu, *memory, record]))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fast", metavar="FOLDER", default=TOKENIZER)
    parser.add_argument("--datatrove", metavar="PYTHON")
    parser.add_argument("--files", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument("--only", nargs="*", choices=("speed", "growth"), default=("speed", "growth"))
    return parser.parse_args()


def main() -> None:
    tables = {"speed": speed, "growth": growth}
    args = parsed()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    for name in args.only:
        with tempfile.TemporaryDirectory() as work:
            for line in tables[name](args, Path(work)):
                print(line, flush=True)
        print()


ROLES: dict[str, Any] = {
    "alone": lambda folder, workers: alone(folder, int(workers)),
    "foundry": foundry,
    "driver": driver,
    "measure": lambda *command: measure(list(command)),
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        ROLES[sys.argv[2]](*sys.argv[3:])
    else:
        main()
