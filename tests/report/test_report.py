"""`mosaic-photon report` on records that are made up: what the page, the picture and `--json` say of them."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import jobs
from mosaic_photon.cli import main
from mosaic_photon.cli import report as command
from mosaic_photon.report.page import COLOURS
from mosaic_photon.report.panels import panels, shown
from mosaic_photon.report.record import METRICS, RUN, read_run
from report.made import write_run


class Page(HTMLParser):
    """A page's tables by caption, headings, figures' words, and everything that it would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.text = path.read_text()
        self._rows: list[list[str]] = []
        self._in: list[str] = []
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        self._in.append(tag)
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "figcaption":
            self.words.append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        within = next((tag for tag in reversed(self._in) if tag != "wbr"), "")
        if within in ("td", "th"):
            self._rows[-1][-1] += data
        elif within == "caption":
            self.tables[data] = self._rows
        elif within == "figcaption":
            self.words[-1] += data
        elif within in ("h1", "h2", "h3"):
            self.headings[-1] += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of several kinds, a folder each."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "plain", 60)
    write_run(folder / "higher", 40, lr=1e-3)
    write_run(folder / "odd", 60, bad=[20, 21, 60], restarts=[25, 40])
    write_run(folder / "three", 3, streams=(), sets=("",))
    return folder


def made(*words: object) -> int:
    return main(["report", *map(str, words)])


def test_a_run_s_page_and_picture(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(runs / "plain") == 0
    assert "plain/report.html and " in capsys.readouterr().out
    page = Page(runs / "plain/report.html")
    assert (runs / "plain/report.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (runs / "plain").iterdir()) == [METRICS, "report.html", "report.png", RUN]
    assert page.headings[0] == "Run plain"
    for plot in (
        "Training loss",
        "Loss by stream",
        "Validation loss",
        "Bits per byte",
        "Learning rate",
        "Gradient norm",
    ):
        assert plot in page.headings
    assert {"Throughput", "MFU", "Memory", "Share of streams", "Losses", "Time", "Data", "Job"} <= set(page.headings)
    assert re.match(
        r"Training loss: first \S+ at step 10, last \S+ at step 600, lowest \S+ at step \d+\.", page.words[0]
    )
    assert "matrices: first " in " ".join(page.words) and "code: first " in " ".join(page.words)
    assert [row[0] for row in page.tables["What the time went into"]][-1] == "all"
    assert ["wait for data", "12.0 s (3.2%)"] in page.tables["What the time went into"]
    assert ["optimizer", "AdamW, peak lr 0.0003"] in page.tables["The job"]
    assert ["optimizer.lr", "0.0003"] in page.tables["Configuration, as it was resolved"]
    assert [address for address in page.fetched if not address.startswith(("#", "data:"))] == []
    assert "default-src 'none'" in page.text
    assert len(page.text.encode()) < 5_000_000


def test_numbers_that_are_not_finite_and_restarts_are_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(runs / "odd") == 0
    page = Page(runs / "odd/report.html")
    assert "3 of 60 values not finite, the first at step 200" in page.words[0]
    assert page.tables["Last and lowest losses"][1][:2] == ["Training loss", "not a number"]
    starts = page.tables["Starts of the job"][1:]
    assert [row[0] for row in starts] == ["1", "2", "3"] and [row[2] for row in starts] == ["0", "200", "350"]
    assert [row[-1] for row in starts] == ["killed", "killed", "ended"]
    assert dict(page.tables["What the time went into"])["steps done again"].startswith("50.0 s (")
    words = "its loss is not finite; stream 'web', samples 0, 1; loss NaN"
    assert page.tables["What was skipped"][1:] == [[step, words] for step in ("200", "210", "600")]
    assert "12 reports were done again" in capsys.readouterr().err


def test_runs_are_compared_on_the_page_and_as_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(runs / "odd", runs / "higher", "--json") == 0
    page = Page(runs / "report.html")  # where both lie
    assert page.headings[0] == "2 runs compared" and "Loss by stream: code" in page.headings
    assert [row[0] for row in page.tables["The runs"][1:]] == ["odd", "higher"]
    differ = [["optimizer.lr", "0.0003", "0.001"], ["training.steps", "600", "400"]]
    assert page.tables["Keys that differ"][1:] == differ
    table = page.tables["Last and lowest losses"]
    first, second = table[table.index(["Loss by stream: code"]) + 1 :][:2]
    assert [first[0], second[0], first[2]] == ["odd", "higher", "–"]
    assert float(second[2]) == pytest.approx(float(second[1]) - float(first[1]), abs=2e-3)

    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    odd, higher = found["runs"]
    rows = [json.loads(line) for line in (runs / "higher" / METRICS).read_text().splitlines()]
    metrics = [row["metrics"] for row in rows if "grad_norm" in row.get("metrics", {})]
    train = [row["loss_metrics/global_avg_loss"] for row in metrics]
    assert higher["last"]["loss_metrics/global_avg_loss"] == train[-1]
    assert higher["best"]["loss_metrics/global_avg_loss"]["value"] == min(train)
    assert higher["best"]["loss_metrics/global_avg_loss"]["step"] == 10 * (train.index(min(train)) + 1)
    assert higher["throughput(tps)"] == pytest.approx(statistics.median(row["throughput(tps)"] for row in metrics))
    assert odd["last"]["loss_metrics/global_avg_loss"] is None and odd["step"] == 600
    assert 0 < odd["goodput"] < higher["goodput"] < 1
    assert found["differs"] == {"optimizer.lr": [3e-4, 1e-3], "training.steps": [600, 400]}
    assert Path(found["page"]).is_file() and Path(found["picture"]).is_file()


def test_runs_without_a_common_metric_and_a_run_without_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, metric in (("a", "loss/x"), ("b", "loss/y")):
        write_run(tmp_path / name, 1)
        row = {"attempt": 1, "step": 1, "time": 1.0, "metrics": {metric: 2.0}}
        (tmp_path / name / METRICS).write_text(json.dumps(row) + "\n")
    (write_run(tmp_path / "c", 1) / METRICS).unlink()
    assert made(tmp_path / "a", tmp_path / "b", tmp_path / "c") == 0
    told = capsys.readouterr().err
    assert "no metric in common" in told and "c: no report yet" in told
    page = Page(tmp_path / "report.html")
    assert "Loss by stream: x" in page.headings and "Loss by stream: y" in page.headings
    assert made(tmp_path / "c") == 0
    assert "No metric has been reported yet" in (tmp_path / "c/report.html").read_text()


def version(folder: Path) -> None:
    (folder / RUN).write_text('{"version": 7, "attempts": []}')


def damaged(folder: Path) -> None:
    (folder / RUN).write_text((folder / RUN).read_text()[:50])


BAD: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "no run": (lambda folder: (folder / RUN).unlink(), [], "is not the folder of a run"),
    "no folder": (lambda folder: None, ["{folder}/none"], "is not the folder of a run"),
    "another version": (version, [], "version 7, and this release of mosaic-photon reads version"),
    "damaged": (damaged, [], "damaged"),
    "given twice": (lambda folder: None, ["{folder}/."], "is given twice"),
    "no page": (lambda folder: None, ["--out", "{folder}/page.pdf"], "must be a file named like PAGE.html"),
    "nowhere": (
        lambda folder: None,
        ["--out", "{folder}/run.json/page.html"],
        "is not a folder that can be written to",
    ),
    "a shell's": (lambda folder: None, ["--out", "~/page.html"], "'~' and '$' are a shell's"),
    "another's page": (
        lambda folder: (folder / "report.html").write_text("<p>mine"),
        [],
        "was not written by this command",
    ),
    "another's picture": (
        lambda folder: (folder / "report.png").write_bytes(b"mine"),
        [],
        "was not written by this command",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_message_and_writes_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words, message = BAD[case]
    folder = write_run(tmp_path / "run", 2)
    spoil(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert made(folder, *(word.format(folder=folder) for word in words)) == 1
    told = capsys.readouterr().err
    assert told.startswith("mosaic-photon report: ") and told.count("\n") == 1 and message in told
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_names_that_are_html_are_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "<script>alert(1)<", 5, sets=(), streams=("</script><b>x", "'\"&"))
    assert made(folder) == 0
    text = (folder / "report.html").read_text()
    assert "<script>alert" not in text and "</script><b>" not in text
    assert Page(folder / "report.html").headings[0] == "Run <script>alert(1)<"


def test_watch_writes_anew_until_the_job_ends_and_bears_a_line_that_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", 20, streams=(), sets=())
    whole = (folder / METRICS).read_bytes()
    (folder / METRICS).write_bytes(whole[: len(whole) // 2])
    seen = []

    def later(seconds: float) -> None:
        seen.append((folder / "report.html").read_text())
        if len(seen) == 3:
            (folder / METRICS).write_bytes(whole)
        assert len(seen) < 10

    monkeypatch.setattr(command.time, "sleep", later)
    assert made(folder, "--watch") == 0
    cut, written = "ends in the middle of a line, which is left out", capsys.readouterr()
    assert "reload it" in seen[0] and cut in seen[0] and seen[0] == seen[2]
    last = (folder / "report.html").read_text()
    assert "reload it" not in last and cut not in last
    assert written.err.count(cut) == 1 and written.out.count("wrote") == 2


def test_a_run_of_three_rows_without_streams_is_shown_without_torch(runs: Path) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "mosaic_photon.cli", "report", str(runs / "three")]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert jobs.slow_imports(run.stderr) <= {"numpy"}
    page = Page(runs / "three/report.html")
    assert "Loss by stream" not in page.headings and "Validation loss" in page.headings


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_lines_and_text_stand_out_in_light_and_dark() -> None:
    style = (jobs.ROOT / "src/mosaic_photon/report/page.css").read_text()
    for ground in re.findall(r"--ground: (#\w+)", style):
        ground = "#ffffff" if ground == "#fff" else ground
        assert [colour for colour in COLOURS if contrast(colour, ground) < 3] == []
    for ground, ink, soft in re.findall(r"--ground: (#\w+);.*--ink: (#\w+); --soft: (#\w+)", style):
        ground = "#ffffff" if ground == "#fff" else ground
        assert contrast(ink, ground) > 7 and contrast(soft, ground) > 4.5


def test_a_stream_a_set_and_training_have_one_colour_in_all_plots_and_none_shares_a_plot_with_its_own(
    tmp_path: Path,
) -> None:
    (run,) = shown(
        [read_run(write_run(tmp_path / "run", 60, streams=("code", "web", "books"), sets=("code", "held_out")))]
    )
    drawn = {panel.title: {line.name: line.colour for line in panel.lines} for panel in panels([run])}
    streams, validation = drawn["Loss by stream"], drawn["Validation loss"]
    assert drawn["Share of streams"] == streams
    assert validation["code"] == streams["code"]
    assert drawn["Bits per byte"] == validation | {"training": drawn["Training loss"]["Training loss"]}
    of_data = streams | drawn["Bits per byte"]
    assert sorted(of_data.values()) == list(range(len(of_data)))
    assert list(drawn["Learning rate"].values()) == [0, 1]


def test_a_sweep_s_plots_are_told_by_their_range(tmp_path: Path) -> None:
    several = [write_run(tmp_path / f"lr-{i}", 3, lr=10.0**-i, streams=(), sets=()) for i in range(1, 6)]
    assert made(*several) == 0
    page = Page(tmp_path / "report.html")
    table = page.tables["Last and lowest losses"]
    lasts = sorted((float(row[1]), row[0]) for row in table[2:7])  # below the heading and the group's
    (low, first), (high, last) = lasts[0], lasts[-1]
    assert page.words[0] == f"5 lines, which end between {low:.4g} ({first}) and {high:.4g} ({last})."
