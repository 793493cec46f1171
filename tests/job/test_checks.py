"""Every check of a job stands in one list, which the job and the doctor both run."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs
from doctor_calls import failures, say_all
from mosaic_photon.errors import ConfigError
from mosaic_photon.job import checks
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.train_spec import PART_CHECKS


def test_a_check_put_into_the_list_is_run_by_the_job_and_by_the_doctor(
    tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def planted(job: MosaicJobConfig, facts: Facts) -> None:
        raise ConfigError(f"planted: {job.training.steps} steps, {facts.world_size} process")

    arguments = jobs.write_job(tmp_path, prepared_data)
    monkeypatch.setattr(checks, "ORDER", [*checks.ORDER, planted])
    assert jobs.run_here(arguments) == 1
    assert "error: planted: 4 steps, 1 process" in capsys.readouterr().err
    code, said = say_all(arguments, [], 1, monkeypatch, capsys)
    assert code == 1
    assert failures(said).splitlines() == ["FAIL  layout: planted: 4 steps, 1 process"]


def test_a_part_s_own_check_is_run_where_the_list_names_the_part(
    tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that needs the data to be open."""

    def planted(job: MosaicJobConfig, facts: Facts) -> None:
        raise ConfigError(f"planted: an epoch has {facts.run_length.epoch_batches} steps")

    arguments = jobs.write_job(tmp_path, prepared_data)
    monkeypatch.setitem(PART_CHECKS, "schedulers", (planted,))
    assert jobs.run_here(arguments) == 1
    said_by_job = capsys.readouterr().err
    assert "error: planted: an epoch has" in said_by_job
    _, said = say_all(arguments, [], 1, monkeypatch, capsys)
    assert failures(said).splitlines() == ["FAIL  dry run: " + said_by_job.partition("error: ")[2].strip()]


def test_each_part_hands_in_once_what_the_list_asks_for() -> None:
    entries = [*checks.ORDER, *checks.WITH_DATA]
    names = [entry for entry in entries if isinstance(entry, str)]
    assert sorted(names) == sorted(PART_CHECKS)
    made = [*checks.in_order(entries, PART_CHECKS)]
    assert len(set(made)) == len(made)
