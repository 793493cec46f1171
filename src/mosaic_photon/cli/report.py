"""`mosaic-photon report RUN...`: a page and a picture of what jobs have trained, from the records in their folders."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import check_path, check_writable, display, write_whole

SECONDS = 10.0
"""Between two looks at the records, at least; a look takes a tenth of the time, at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="job.dump_folder of a run; several are laid over each other")
    add(
        "--out",
        metavar="PAGE.html",
        help="the page; the picture lies beside it, a PNG (default: report.html in the run's folder, of several runs "
        "in the folder that holds them)",
    )
    add("--json", action="store_true", help="print losses, throughput, goodput and the keys that differ, as one object")
    add("--watch", action="store_true", help="write the page anew while the jobs run, until they end or Ctrl-C")


def run(args: argparse.Namespace) -> int:
    """Write the page and the picture; with --watch again and again."""
    page = _page(args)
    while True:
        began = time.monotonic()
        seen = _stamps(args.runs)
        ended = write(args, page)
        if not args.watch or ended:
            return 0
        pause = max(SECONDS, 9 * (time.monotonic() - began))
        time.sleep(pause)
        while _stamps(args.runs) == seen:
            time.sleep(SECONDS)


def write(args: argparse.Namespace, page: Path) -> bool:
    """Read the records and write the report; returns whether all jobs have ended."""
    from mosaic_photon.report import page as html
    from mosaic_photon.report import tables
    from mosaic_photon.report.panels import shown
    from mosaic_photon.report.picture import picture
    from mosaic_photon.report.record import read_run

    runs = shown([read_run(folder) for folder in args.runs])
    ended = all(tables.end_of(run) for run in runs)
    beside = page.with_suffix(".png")
    for path in (page, beside):
        refuse_others_file(path, html.GENERATOR)
    remarks = tables.remarks(runs)
    write_whole(page, html.page(runs, args.watch and not ended).encode())
    write_whole(beside, picture(runs))
    if args.json:
        files = {"page": str(page), "picture": str(beside), "remarks": remarks}
        print(json.dumps(tables.summary(runs) | files, default=str), flush=True)
    else:
        for remark in remarks:
            print(remark, file=sys.stderr)
        print(f"wrote {display(page)} and {display(beside)}", flush=True)
    return ended


def _page(args: argparse.Namespace) -> Path:
    """Where the page goes.

    Raises:
        ConfigError: not to a file that can be written.
    """
    if args.out is None:
        folders = [Path(folder).resolve() for folder in args.runs]
        from mosaic_photon.report.panels import common_folder
        from mosaic_photon.report.record import read_attempts

        for folder in folders:
            read_attempts(folder)  # one that is no run is refused as that, and not as one that cannot be written to
        page = (folders[0] if len(folders) == 1 else common_folder(folders)) / "report.html"
    else:
        check_path("--out", args.out)
        page = Path(args.out)
    check_page(page)
    return page


def check_page(page: Path) -> None:
    """Raises ConfigError: no page can be written there."""
    if page.suffix not in (".html", ".htm") or page.is_dir():
        raise ConfigError(f"{display(page)}: must be a file named like PAGE.html; name another with --out.")
    check_writable("--out", str(page.parent))


def refuse_others_file(path: Path, generator: str) -> None:
    """What this command has not written is not written over."""
    if path.exists() and not (path.is_file() and generator.encode() in path.open("rb").read(1024)):
        raise ConfigError(f"{display(path)} is there and was not written by this command: name another with --out.")


def _stamps(folders: list[str]) -> list[tuple[int, int]]:
    """By which a change of the records shows."""
    from mosaic_photon.report.record import METRICS

    paths = [Path(folder) / METRICS for folder in folders]
    return [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()]
