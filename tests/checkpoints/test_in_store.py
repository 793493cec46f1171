"""Checkpoints in an object store: a job goes on from them, uses read them, and none is half taken or lost."""

from __future__ import annotations

import io
import json
import signal
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import jobs
from mosaic_photon import stores
from mosaic_photon.checkpoints.find import complete_steps
from mosaic_photon.cli import main
from mosaic_photon.errors import ConfigError
from s3_proxy import Proxy, always, first, reset, silent, status

SAVES = "[checkpoint]\nenable = true\ninterval = 1\nkeep_latest_k = 2\n"
JOB = jobs.JOB.replace("[checkpoint]\n", SAVES)
BARE = JOB.replace("last_save_model_only = false\n", "")


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """Four steps, all in one go, with checkpoints in a folder."""
    folder = tmp_path_factory.mktemp("disk")
    assert jobs.run_here(jobs.write_job(folder, prepared_data, JOB), "--training.steps=4") == 0
    return folder


@pytest.fixture
def url(s3: Any) -> str:
    """A bucket that is empty."""
    s3.client.create_bucket(Bucket="runs")
    for entry in s3.client.list_objects_v2(Bucket="runs").get("Contents", ()):
        s3.client.delete_object(Bucket="runs", Key=entry["Key"])
    return "s3://runs/one"


def write(folder: Path, data: Path, url: str) -> list[str]:
    return jobs.write_job(folder, data, JOB.replace("[checkpoint]\n", f'[checkpoint]\nfolder = "{url}"\n'))


def test_a_job_goes_on_from_a_store_that_stumbles(
    on_disk: Path, url: str, proxy: Proxy, prepared_data: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = write(tmp_path, prepared_data, url)
    faults = [first(2, status(503)), first(2, reset), first(2, status(500))]
    proxy.of = lambda one: one.command in ("PUT", "POST")
    proxy.fault = lambda one: any(fault(one) for fault in faults)
    assert jobs.run_here(arguments, "--training.steps=2", "--checkpoint.async_mode=async") == 0
    proxy.of, faults = lambda one: True, [first(2, status(503)), first(2, reset)]
    assert jobs.run_here(arguments, "--training.steps=4") == 0
    assert "Resumes from s3://runs/one/step-2" in capsys.readouterr().out
    assert jobs.scalars(tmp_path) == jobs.scalars(on_disk)
    assert list(complete_steps(url)) == [3, 4] and stores.names(url) == ["step-3", "step-4"]
    assert not (tmp_path / "out/checkpoint").exists() and not list(tmp_path.rglob("s3:"))


def test_what_uses_checkpoints_reads_them_from_a_store(on_disk: Path, url: str, s3: Any, tmp_path: Path) -> None:
    """The same numbers and weights as from a folder."""
    for path in (on_disk / "out/checkpoint").rglob("*"):
        if path.is_file():
            s3.client.upload_file(str(path), "runs", f"one/{path.relative_to(on_disk / 'out/checkpoint')}")
    disk, job, said = str(on_disk / "out/checkpoint"), ["--job", str(on_disk / "job.toml")], []
    for place in (disk, url):
        with redirect_stdout(io.StringIO()) as printed:
            assert main(["evaluate", place, *job, "--data", str(on_disk / "data.toml"), "--json"]) == 0
            assert main(["generate", f"{place}/step-3", *job, "--prompt=def", "--max-new-tokens=8"]) == 0
        said.append(printed.getvalue().replace(place, ""))
        out = tmp_path / ("disk" if place == disk else "store")
        assert main(["export", place, str(out / "export"), *job]) == 0
        assert main(["average", f"{place}/step-3", f"{place}/step-4", "--out", str(out / "average")]) == 0
    assert said[0] == said[1] and "loss" in said[0]
    written = {path.relative_to(tmp_path / "disk"): path for path in (tmp_path / "disk").rglob("*") if path.is_file()}
    for name, path in written.items():
        assert name.name == ".metadata" or (tmp_path / "store" / name).read_bytes() == path.read_bytes(), name
    assert len(written) > 5


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ('folder = "s3://nowhere/run"', "checkpoint.folder = 's3://nowhere/run': cannot list it (FileNotFoundError"),
        (
            'folder = "file:///runs/one"',
            "file:///runs/one: a folder of this machine is named by its path, without file://",
        ),
        ('folder = "ftps://host/run"', "ftps://host/run: stores that are known are s3://, "),
        ('folder = "s3:/runs/one"', "s3:/runs/one: a store's address has two slashes: s3://runs/one"),
        ('folder = "gs://runs/one"', "gs://runs/one: needs the store's client: pip install 'mosaic-photon[gs]'"),
        ('folder = "s3://runs/new"\nlast_save_in_hf = true\nlast_save_model_only = true', "is not written to a store"),
        ('initial_load_path = "s3://runs/none"', "initial_load_path = 's3://runs/none': there is no such folder."),
    ],
)
def test_what_a_store_cannot_do_is_said_before_the_first_step(
    asked: str, says: str, url: str, prepared_data: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = jobs.write_job(tmp_path, prepared_data, BARE.replace("[checkpoint]\n", f"[checkpoint]\n{asked}\n"))
    assert jobs.run_here(arguments) == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
    assert main(["doctor", arguments[1], arguments[3]]) == 1
    assert says in capsys.readouterr().out


def settings(monkeypatch: pytest.MonkeyPatch, **config: Any) -> None:
    """As a user's FSSPEC_S3 has them."""
    from fsspec.config import conf

    for scheme in ("s3", "s3a"):  # s3fs reads both
        monkeypatch.setitem(conf, scheme, {"config_kwargs": config})
        monkeypatch.setenv(f"FSSPEC_{scheme.upper()}", "{}")


def slow_down(one: Any) -> None:
    """What S3 says where it is busy, for which s3fs has rounds of attempts."""
    one.send_response(503)
    body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    one.send_header("Content-Length", str(len(body)))
    one.end_headers()
    one.wfile.write(body)


def test_the_users_number_of_attempts_holds(url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    settings(monkeypatch)
    proxy.of, proxy.fault = lambda one: True, always(status(503))
    with pytest.raises(ConfigError, match="s3://runs/one': cannot list it"):
        stores.check_rights("checkpoint.folder", url)
    assert len(proxy.requests) == 2
    proxy.fault = always(slow_down)
    with pytest.raises(ConfigError, match="s3://runs/one': cannot list it"):
        stores.check_rights("checkpoint.folder", url)
    assert len(proxy.requests) == 2 + 2 * stores.ROUNDS


ONCE = {"total_max_attempts": 1, "mode": "standard"}


def test_a_silent_store_is_waited_for_as_long_as_the_user_says(
    url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(monkeypatch, read_timeout=0.6)
    assert stores.open_store(url)[0].config_kwargs["retries"]["total_max_attempts"] == stores.ATTEMPTS
    settings(monkeypatch, read_timeout=0.6, retries=ONCE)  # and two rounds of it are more than a second
    monkeypatch.setattr(stores, "AGAIN_S", 1)
    proxy.of, proxy.fault = lambda one: True, always(silent)
    with pytest.raises(ConfigError, match=r"s3://runs/one': cannot list it after \d+ s \(.*[Tt]imeout"):
        stores.check_rights("checkpoint.folder", url)
    with pytest.raises(ConfigError, match=r"s3://runs/one/x: reading failed after \d+ s: .*[Tt]imeout"):
        stores.read(f"{url}/x")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["away, disabled", "silent, async"])
def test_a_store_that_is_away_for_a_whole_save_ends_the_job_and_loses_nothing(
    case: str, url: str, on_disk: Path, proxy: Proxy, prepared_data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """In one message; the whole checkpoints stay, and the same command goes on from the newest."""
    how, mode = case.split(", ")
    arguments = write(tmp_path, prepared_data, url)
    for name in ("FSSPEC_S3", "FSSPEC_S3A"):  # the second is what this process has chosen, for those that it starts
        monkeypatch.setenv(name, json.dumps({"config_kwargs": {"read_timeout": 0.5, "retries": ONCE}}))
    proxy.fault = always(silent if how == "silent" else reset)
    proxy.of = lambda one: any("step-3/__0_0" in request for request in proxy.requests)
    flags = "--training.steps=4", f"--checkpoint.async_mode={mode}"
    process = jobs.start(arguments, *flags, ranks=0)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert said.count("s3://runs/one/step-3: saving failed after ") == 1 and "Traceback" not in said, said
    assert "the same command goes on from it" in said
    proxy.fault = lambda one: False
    assert list(complete_steps(url)) == [1, 2]
    assert jobs.run_here(arguments, *flags) == 0
    assert jobs.scalars(tmp_path) == jobs.scalars(on_disk)
    assert list(complete_steps(url)) == [3, 4]


PHASES = {
    "before the weights": "PUT /runs/one/step-3/__0_0.distcp",
    "after them": "PUT /runs/one/step-3/.metadata.tmp",
    "before it counts as whole": "PUT /runs/one/step-3/.metadata",
    "before an older one is removed": "DELETE /runs/one/step-1/.metadata",
    "while it is removed": "POST /runs?delete",
}


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_in_each_phase_of_a_save_loses_nothing(
    phase: str, on_disk: Path, url: str, proxy: Proxy, prepared_data: Path, tmp_path: Path
) -> None:
    """The newest whole checkpoint is taken, and the steps after it are those of a run that nobody killed."""
    arguments = write(tmp_path, prepared_data, url)

    def deadly(one: Any) -> bool:
        removes = "DELETE /runs/one/step-1/.metadata" in proxy.requests or not phase.startswith("while")
        if removes and f"{one.command} {one.path}" == PHASES[phase]:
            jobs.kill(process)
            reset(one)
            return True
        return False

    proxy.of, proxy.fault = lambda one: True, lambda one: False
    process = jobs.start(arguments, "--training.steps=4", ranks=0)
    proxy.fault = deadly
    process.wait(200)
    assert process.returncode == -signal.SIGKILL
    proxy.fault = lambda one: False
    removing = phase in list(PHASES)[3:]
    assert list(complete_steps(url)) == ([2, 3] if phase.startswith("while") else [1, 2, 3] if removing else [1, 2])
    assert jobs.run_here(arguments, "--training.steps=4") == 0
    assert jobs.scalars(tmp_path) == jobs.scalars(on_disk)
    assert list(complete_steps(url))[-2:] == [3, 4]
