"""One call on a GPU: is everything right there, how fast is it, and where does the time go.

    python benchmarks/gpu_suite.py --minutes 8 --out DIR [--device cuda|cpu] [--tiny] [--only PART ...]

Parts run in the order of what is worth most, each in its own process with a time limit; parts that time nothing run
beside each other on a GPU. Rows are written to DIR/results.jsonl as they come ("part", "status": ok, failed, timeout or
skipped, and a figure with its target), what parts printed to DIR/PART.log, the tables to DIR/results.md, printed last.
A part that fails is a row; the exit code is 0 if the suite itself ran. `make gpu-bundle` makes what a bare machine
needs; see docs/performance.md.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu.parts import PARTS, Part  # noqa: E402
from gpu.report import markdown  # noqa: E402
from gpu.rows import Options, Rows  # noqa: E402

LEAST_S = 15
"""A part is not begun with less time than this."""

ON_CPU = 8
"""A part may take this many times as long there: two cores instead of many, and nothing runs beside it."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together (default: 8)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU runs in seconds; figures mean nothing")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=[part.name for part in PARTS], help="these alone")
    parser.add_argument("--bundle", type=Path, default=ROOT / "build" / "gpu_bundle", help="shards and tokenizer")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # the process of one part
    return parser.parse_args()


def batches(parts: Sequence[Part], device: str) -> list[list[Part]]:
    """Parts that run at once: those that time nothing, if they follow each other and there is a GPU to share."""
    together: list[list[Part]] = []
    for part in parts:
        if together and device == "cuda" and not part.alone and not together[-1][0].alone:
            together[-1].append(part)
        else:
            together.append([part])
    return together


def run_part(part: Part, options: argparse.Namespace, deadline: float) -> None:
    """One part in a process of its own, which writes its rows; what ended it otherwise is a row of ours."""
    rows, begun = Rows(options.out, part.name), time.monotonic()
    limit = min(part.limit_s * (1 if options.device == "cuda" else ON_CPU), deadline - begun)
    if limit < LEAST_S:
        rows.end("skipped", 0.0, f"{max(limit, 0):.0f} s were left")
        return
    command = [sys.executable, __file__, "--run", part.name, f"--device={options.device}", f"--out={options.out}"]
    command += [f"--bundle={options.bundle}", *(["--tiny"] if options.tiny else [])]
    log = options.out / f"{part.name}.log"
    with log.open("w") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
        try:
            code = process.wait(limit)
            status = "ok" if code == 0 else "failed"
            note = "" if code == 0 else last_line(log)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the jobs that it started too; the group is its own
            process.wait()
            status, note = "timeout", f"stopped after {limit:.0f} s"
    rows.end(status, time.monotonic() - begun, note)


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "printed nothing"


def child(options: argparse.Namespace) -> None:
    """The process of one part."""
    part = next(part for part in PARTS if part.name == options.run)
    given = Options(options.device, options.tiny, options.out, options.bundle)
    module, function = part.function.split(":")
    rows = Rows(options.out, part.name, aimed=not options.tiny)
    getattr(import_module(f"gpu.{module}"), function)(given, rows)
    if failed := [row["name"] for row in rows.mine() if row["status"] == "failed"]:
        sys.exit(f"failed: {', '.join(failed)}")


def main() -> int:
    options = arguments()
    options.out, options.bundle = options.out.resolve(), options.bundle.resolve()
    if options.run:
        child(options)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.jsonl").unlink(missing_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    chosen = [part for part in PARTS if options.only is None or part.name in options.only]
    for together in batches(chosen, options.device):
        with ThreadPoolExecutor(len(together)) as pool:
            list(pool.map(lambda part: run_part(part, options, deadline), together))
        print(", ".join(Rows(options.out, part.name).status() for part in together), flush=True)
    text = markdown(options.out)
    (options.out / "results.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
