"""What a job's record costs each report: the row of metrics and the row of its steps' time.

    python benchmarks/bench_record.py [--reports 5000] [--folder FOLDER]

Microseconds a report, medians of five rounds, by the clock and of CPU. `--folder` is where the record is written:
the file system has its say. A report comes every `metrics.log_freq` steps, 10 by default.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from mosaic_photon.report import recorder
from mosaic_photon.report.record import Attempt


def round_of(folder: Path, reports: int, names: int) -> tuple[float, float]:
    """Microseconds a report with this many metrics, by the clock and of CPU."""
    metrics = {f"loss_metrics/name_of_metric_{number}": 1.2345678 + number for number in range(names)}
    step = 0
    attempt = Attempt(time=time.time(), begin="Begins anew", config={"names": names})
    recorder.begin(folder, attempt, False, where=lambda: (step, step), waited=lambda: 0.01, compiled=lambda: 0.0)
    record = recorder.current()
    assert record is not None
    record.start()
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(1, reports + 1):
        record.steps()
        record.report(metrics, step)
    spent = (time.perf_counter() - wall) * 1e6 / reports, (time.process_time() - cpu) * 1e6 / reports
    recorder.end("ended")
    return spent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reports", type=int, default=5000)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    print("| metrics in a report | µs | µs of CPU |\n|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for names in (20, 200, 2000):
            rounds = [round_of(Path(name) / str(names), args.reports * 20 // (20 + names), names) for _ in range(5)]
            wall, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(f"| {names} | {wall:.0f} | {cpu:.0f} |")


if __name__ == "__main__":
    main()
