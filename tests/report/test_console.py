"""What a person sees in a terminal: a line a report, each warning once, and where it all is in the end."""

from __future__ import annotations

import errno
import logging
import os
import pty
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import jobs
from mosaic_photon.report import recorder
from mosaic_photon.report.console import LOSS, Lines, Once, clock, count_in_words, line_of, short
from mosaic_photon.report.panels import shown
from mosaic_photon.report.record import read_run
from mosaic_photon.report.tables import summary
from mosaic_photon.waiting import Count


def in_terminal(command: list[str]) -> str:
    """What the command shows in a terminal of its own, without what only colours and moves the cursor."""
    ours, its = pty.openpty()
    given = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    environment = given | {"COLUMNS": "120", "TERM": "xterm"}
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, cwd=jobs.ROOT, env=environment) as process:
        os.close(its)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError as error:
            assert error.errno == errno.EIO  # the last process that had it is gone
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown.decode())


def test_a_job_in_a_terminal_shows_a_line_a_report_and_what_comes_next(tmp_path: Path, prepared_data: Path) -> None:
    arguments = jobs.write_job(tmp_path, prepared_data)
    saves = ["--checkpoint.enable", "--checkpoint.interval=2"]
    flags = [*saves, "--validation.enable", "--metrics.enable_tensorboard=false"]
    shown = in_terminal([sys.executable, "-m", "mosaic_photon.train_with_mosaic", *arguments, "--", *flags])
    losses = read_run(tmp_path / "out").series
    for step, loss in zip(losses[LOSS].steps, losses[LOSS].values, strict=True):
        begins = f"step {step}/4  tokens {short(256 * step)}  loss {loss:.4f}  lr "
        rest = r"\S+ tokens/s  data wait \S+%  left"
        assert re.search(rf"^{begins}\S+  {rest} ", shown, re.MULTILINE), shown
    for loss in losses["validation_metrics/loss"].values:
        assert f"validation {loss:.4f}\n" in shown
    assert "opening the data" in shown
    assert "Begins anew: there is no complete checkpoint.\n" in shown
    assert "[titan]" not in shown
    assert shown.count("model.safetensors.index.json not found") == 1
    out = tmp_path / "out"
    assert shown.rstrip().splitlines()[-5:] == [
        "ended at step 4 of 4",
        f"checkpoint  {out}/checkpoint/step-4",
        f"record      {out}/run.json, metrics.jsonl",
        f"report      mosaic-photon report {out}",
        f"text        mosaic-photon generate {out}/checkpoint --job {tmp_path}/job.toml --prompt 'Once'",
    ]


def test_a_line_has_mfu_where_it_is_known_and_the_throughput_of_all_ranks() -> None:
    metrics = {
        LOSS: 4.12345, "lr": 3e-4, "n_tokens_seen": 1_234_567, "throughput(tps)": 2000.0, "mfu(%)": 41.26,
        "time_metrics/data_loading(%)": 0.31,
    }  # fmt: skip
    assert line_of(metrics, 120, 10_000, 8, 5025.0) == (
        "step    120/10,000  tokens 1.23M  loss 4.1235  lr 3.00e-04  16k tokens/s  mfu 41.3%  data wait 0.3%  "
        "left 1h 23m"
    )
    del metrics["mfu(%)"]
    assert "mfu" not in line_of(metrics, 120, 10_000, 8, None)
    assert [clock(0.4), clock(61), clock(3600)] == ["0m 00s", "1m 01s", "1h 00m"]
    assert [short(0), short(999), short(81_920), short(999_936), short(3.2e9)] == ["0", "999", "81.9k", "1M", "3.2B"]


def test_what_this_project_tells_is_shown_on_rank_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Once(Lines(4))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        for path in (recorder.__file__, logging.__file__):
            text = f"rank {rank} goes on from   step 2"
            handler.handle(logging.LogRecord("root", logging.INFO, path, 1, text, None, None))
    assert capsys.readouterr().out == "rank 0 goes on from step 2\n"


def test_warnings_are_shown_once_and_information_of_others_never(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    logger = logging.Logger("test")
    logger.addHandler(Once(Lines(4)))
    for _ in range(3):
        logger.info("Saving the checkpoint")
        logger.warning("a disk is [nearly] full")
        logger.error("a shard is gone")
    assert capsys.readouterr().out == "warning: a disk is [nearly] full\nerror: a shard is gone\n"


def test_a_warning_of_python_is_shown_as_one_that_is_logged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = Once(Lines(4)).show_warning
        for line in (7, 7, 8):
            warnings.warn_explicit("no full support [on cpu]", UserWarning, "random.py", line)
    told = [f"warning: no full support [on cpu] (UserWarning, random.py:{line})\n" for line in (7, 8)]
    assert capsys.readouterr().out == "".join(told)


def test_in_a_file_a_stage_is_a_line_and_its_end_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        lines = Lines(4)
        lines.stop()
        lines.stage("building the model")
        lines.stop()
        lines.stop()
    assert capsys.readouterr().out == "building the model ...\n"


def test_what_a_stage_waits_for_is_told_with_its_rate_and_what_is_left_where_that_is_known() -> None:
    fetched = Count("fetched", done=3_000_000_000, since=10.0)
    assert count_in_words(fetched, 12.0) == "fetched 3.0 GB, 1500 MB/s"
    assert count_in_words(Count("fetched", since=10.0), 10.0) == "fetched 0.0 GB, 0 MB/s"
    verified = Count("verified", since=10.0)
    verified.begin(60_000_000_000)
    verified.begin(20_000_000_000)
    verified.done = 20_000_000_000
    assert count_in_words(verified, 50.0) == "verified 20.0 of 80.0 GB, 500 MB/s, left 2m 00s"
    assert verified.is_under_way
    verified.done = 80_000_000_000
    assert not verified.is_under_way


@pytest.mark.slow
def test_ranks_of_a_pipeline_share_a_terminal(tmp_path: Path, prepared_data: Path) -> None:
    """The last stage has the metrics, the first the clock and the end; what both are warned of is told once."""
    arguments = jobs.write_job(tmp_path, prepared_data)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run += ["-m", "mosaic_photon.train_with_mosaic", *arguments, "--", "--metrics.log_freq=2", "--validation.enable"]
    run += ["--checkpoint.enable", "--parallelism.pipeline_parallel_degree=2", "--training.local_batch_size=4"]
    run += ["--parallelism.pipeline_parallel_schedule=1F1B", "--validation.local_batch_size=4"]
    shown_there = in_terminal(run)
    out = tmp_path / "out"
    read = read_run(out)
    losses, validation = read.series[LOSS], read.series["validation_metrics/loss"]
    assert (losses.steps, losses.tokens, validation.steps) == ([1, 2, 4], [256, 512, 1024], [1, 2, 4])
    assert losses.values == pytest.approx(list(jobs.scalars(tmp_path).values()))
    assert read.events[-1].facts == {"how": "ended"}
    for step, loss in zip(losses.steps, losses.values, strict=True):
        assert shown_there.count(f"step {step}/4  tokens {short(256 * step)}  loss {loss:.4f}  ") == 1
    for step, loss in zip(validation.steps, validation.values, strict=True):
        assert shown_there.count(f"step {step}  validation {loss:.4f}\n") == 1
    for told in ("model.safetensors.index.json not found", "will be overridden to 3 based on", "ended at step 4 of 4"):
        assert shown_there.count(told) == 1, told
    assert "the first step" not in shown_there.partition("step 2/4")[2]
    (told,) = summary(shown([read]))["runs"]
    assert (told["step"], told["tokens"], told["last"][LOSS]) == (4, 1024, losses.values[-1])
