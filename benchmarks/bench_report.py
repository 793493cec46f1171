"""How long `mosaic-photon report` takes, beyond its imports, and how large its page is.

    python benchmarks/bench_report.py [--rows 100000] [--repeats 3]

A record of that many reports with three streams and two validation sets, made up as in the tests. Seconds of CPU, which
other work on the machine does not change; medians. The first repeat has what matplotlib and bokeh do once a process.
"""

import argparse
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mosaic_photon.report.page import page
from mosaic_photon.report.panels import Shown, shown
from mosaic_photon.report.picture import picture
from mosaic_photon.report.record import METRICS, read_run

TESTS = Path(__file__).parent.parent / "tests"


def timed(call: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Seconds of CPU, and what the call gave."""
    began = time.process_time()
    given = call(*args)
    return time.process_time() - began, given


def measure(folder: Path) -> tuple[list[float], int]:
    """Seconds of reading, page and picture, and the page's bytes."""
    reading, run = timed(read_run, folder)
    runs: list[Shown] = shown([run])
    writing, text = timed(page, runs)
    drawing, _ = timed(picture, runs)
    return [reading, writing, drawing], len(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = runpy.run_path(str(TESTS / "report" / "made.py"))["write_run"](Path(name) / "run", args.rows)
        print(f"{args.rows:,} reports, {(folder / METRICS).stat().st_size / 1e6:.0f} MB of record")
        found = [measure(folder) for _ in range(args.repeats)]
    rows = [[*seconds, sum(seconds)] for seconds, _ in found]
    print("| | read, s | page, s | picture, s | all, s |\n|---|---|---|---|---|")
    for heading, row in (
        ("first", rows[0]),
        ("median", [statistics.median(column) for column in zip(*rows, strict=True)]),
    ):
        print(f"| {heading} | {' | '.join(f'{seconds:.2f}' for seconds in row)} |")
    print(f"page: {found[0][1] / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
