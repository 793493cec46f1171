"""What is reported of each stream; that it is so in every layout, tests/test_layouts.py tries."""

import math
from pathlib import Path

import pytest

import jobs
import mds_data
from mosaic_photon.errors import ConfigError
from mosaic_photon.names import metric_names

A, B = "web__2026", "books"
"""The streams' names in metrics."""
ON = jobs.JOB + "[mosaic]\nloss_per_stream = true\n"
SUMS = '[callbacks."streams_callback:Sums"]\n'
TAGS = [f"{what}/{stream}" for what in ("loss", "tokens", "epochs") for stream in (A, B)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mds_data.write_two_streams(tmp_path_factory.mktemp("two"), 65)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run that is not stopped, of more than an epoch of 36 batches, of which it passes over two."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = jobs.write_job(folder, data, ON + SUMS, mds_data.TWO_STREAMS)
    flags = ("--training.steps=40", "--metrics.log_freq=10", "--mosaic.skip_batches=25-26")
    assert jobs.run_here(arguments, *flags, "--validation.enable", "--validation.freq=15") == 0
    return folder


def test_loss_tokens_and_epochs_are_those_of_the_rows(whole: Path) -> None:
    """Of all labels since the last report, validation's not among them."""
    begin = 0
    for step in (1, 10, 20, 30, 40):
        for stream, samples, letter in ((A, 96, "a"), (B, 48, "b")):
            sums = {what: jobs.scalars(whole, f"sums/{what}/{letter}") for what in ("losses", "labels", "rows")}
            losses, labels = (sum(sums[what][at] for at in range(begin + 1, step + 1)) for what in ("losses", "labels"))
            rows = sum(sums["rows"][at] for at in range(1, step + 1))
            assert jobs.scalars(whole, f"loss/{stream}")[step] == pytest.approx(losses / labels, rel=1e-6)
            assert jobs.scalars(whole, f"tokens/{stream}")[step] == rows * 64
            assert jobs.scalars(whole, f"epochs/{stream}")[step] == pytest.approx(rows / samples)
        begin = step


STAGES = """
[[mosaic_stages]]
duration = "4ba"
proportion = {{ "web, 2026" = 0.75, books = 0.25 }}
[[mosaic_stages]]
proportion = {{ books = 1 }}
"""


def test_stages_with_a_callback(data: Path, tmp_path: Path) -> None:
    """A stream that is no longer read has no loss, and keeps its counts."""
    arguments = jobs.write_job(tmp_path, data, ON + SUMS, mds_data.TWO_STREAMS + STAGES)
    assert jobs.run_here(arguments, "--training.steps=6") == 0
    assert list(jobs.scalars(tmp_path, f"loss/{A}")) == [1, 2, 3, 4]
    assert list(jobs.scalars(tmp_path, f"tokens/{A}").values()) == [192, 384, 576, 768, 768, 768]
    losses, labels = (jobs.scalars(tmp_path, f"sums/{what}/b") for what in ("losses", "labels"))
    found = jobs.scalars(tmp_path, f"loss/{B}")
    assert found == {step: pytest.approx(losses[step] / labels[step], rel=1e-6) for step in range(1, 7)}


def test_bits_per_byte_are_the_loss_of_the_same_step(whole: Path) -> None:
    found, losses = (jobs.scalars(whole, tag) for tag in ("loss_metrics/bits_per_byte", jobs.LOSS))
    labels, text = ({step: sum_of(whole, what, step) for step in losses} for what in ("labels", "bytes"))
    assert found == {step: pytest.approx(losses[step] * labels[step] / text[step] / math.log(2)) for step in losses}


def sum_of(folder: Path, what: str, step: int) -> float:
    """Of both streams."""
    return sum(jobs.scalars(folder, f"sums/{what}/{letter}")[step] for letter in "ab")


def test_a_run_that_was_stopped_goes_on_with_its_counts(whole: Path, data: Path, tmp_path: Path) -> None:
    """In the first report after it, at a step that is reported of none that was not stopped."""
    arguments = jobs.write_job(tmp_path, data, ON, mds_data.TWO_STREAMS)
    flags = ("--metrics.log_freq=10", "--checkpoint.enable", "--checkpoint.interval=100")
    for steps in (13, 20):
        assert jobs.run_here(arguments, *flags, f"--training.steps={steps}") == 0
    for tag in TAGS[2:]:
        assert jobs.scalars(tmp_path, tag)[20] == jobs.scalars(whole, tag)[20]


def test_counts_that_a_checkpoint_lacks_are_worked_out(whole: Path, data: Path, tmp_path: Path) -> None:
    """To some samples within an epoch."""
    flags = ("--metrics.log_freq=10", "--checkpoint.enable", "--checkpoint.interval=100")
    for job, steps in ((jobs.JOB, 13), (ON, 20)):
        arguments = jobs.write_job(tmp_path, data, job, mds_data.TWO_STREAMS)
        assert jobs.run_here(arguments, *flags, f"--training.steps={steps}") == 0
    for stream in (A, B):
        found, right = (jobs.scalars(folder, f"tokens/{stream}")[20] for folder in (tmp_path, whole))
        assert found == pytest.approx(right, abs=8 * 64)


@pytest.mark.parametrize(("names", "clean"), [(["a b", "c/d", "é.1"], ["a_b", "c/d", "é.1"]), (["a b", "a:b"], None)])
def test_names_in_metrics(names: list[str], clean: list[str] | None) -> None:
    if clean is not None:
        assert metric_names(names) == clean
        return
    with pytest.raises(ConfigError, match="names 'a b' and 'a:b' would both be 'a_b' in metrics; rename one"):
        metric_names(names)
