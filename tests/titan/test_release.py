"""The release that is installed is one that this package knows, or the job ends with a sentence that mends it."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

import jobs
from mosaic_photon import titan
from mosaic_photon.errors import ConfigError
from mosaic_photon.titan import releases
from mosaic_photon.titan.interface import Release


def test_the_installed_release_has_what_every_release_has() -> None:
    asked = {name: call for name, call in vars(Release).items() if inspect.isfunction(call) and name[0] != "_"}
    assert set(asked) == {"add_llama3_mup", "check_layout", "known_models", "model_spec", "register", "build_trainer"}
    found = titan.release()
    for name, call in asked.items():
        _, *parameters = inspect.signature(call).parameters
        assert list(inspect.signature(getattr(found, name)).parameters) == parameters
    assert all(hasattr(found, name) for name in Release.__annotations__)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What is installed, to be changed."""
    there: dict[str, str] = {}

    def version(package: str) -> str:
        if package not in there:
            raise PackageNotFoundError(package)
        return there[package]

    monkeypatch.setattr(releases, "version", version)
    releases.installed.cache_clear()
    yield there
    releases.installed.cache_clear()


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({}, "TorchTitan is not installed: pip install 'torchtitan==0.2.2' 'torch>=2.11'"),
        (
            {"torchtitan": "0.4.0", "torch": "2.16.0"},
            "torchtitan 0.4.0 is installed, and this package runs on 0.2.2 and 0.3: pip install 'torchtitan==0.3.0' "
            "'torch>=2.14'",
        ),
        (
            {"torchtitan": "0.2.1", "torch": "2.11.0"},
            "torchtitan 0.2.1 is installed, and this package runs on 0.2.2 and",
        ),
        (
            {"torchtitan": "0.3.0", "torch": "2.11.0+cu130"},
            r"torchtitan 0.3.0 needs torch 2.14 or newer, and 2.11.0\+cu130 is installed: pip install",
        ),
        (
            {"torchtitan": "0.2.2", "torch": "2.9.1"},
            "torchtitan 0.2.2 needs torch 2.11 or newer, and 2.9.1 is installed",
        ),
    ],
)
def test_what_cannot_work_is_one_message_with_the_command_that_mends_it(
    versions: dict[str, str], there: dict[str, str], said: str
) -> None:
    versions.update(there)
    with pytest.raises(ConfigError, match=f"^{said}"):
        titan.release()


@pytest.mark.parametrize(("titan_version", "torch"), [("0.2.2", "2.11.0"), ("0.3.0", "2.14.0"), ("0.3.1", "2.15.0")])
def test_what_is_known_is_taken(versions: dict[str, str], titan_version: str, torch: str) -> None:
    versions.update(torchtitan=titan_version, torch=torch)
    assert releases.installed().folder == f"v{titan_version[0]}{titan_version[2]}"


def test_a_job_without_torchtitan_ends_with_the_message(tmp_path: Path) -> None:
    arguments = jobs.write_job(tmp_path, tmp_path)
    hidden = (
        "import importlib.metadata as m, importlib.util, sys; v = m.version; f = importlib.util.find_spec\n"
        "def version(name):\n"
        "    if name == 'torchtitan': raise m.PackageNotFoundError(name)\n"
        "    return v(name)\n"
        "m.version = version\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'torchtitan' else f(name, *more)\n"
        "sys.modules['torchtitan'] = None\n"
        "from mosaic_photon.train_with_mosaic import main; sys.exit(main(sys.argv[1:]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", hidden, *arguments], capture_output=True, text=True, cwd=jobs.ROOT, env=os.environ
    )
    assert (run.returncode, run.stderr) == (1, "error: TorchTitan is not installed: pip install 'torchtitan==0.2.2' "
                                               "'torch>=2.11'\n")  # fmt: skip


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"torchtitan": "0.4.0"}, "torchtitan 0.4.0 is installed, and this package runs on 0.2.2 and 0.3: pip install"),
        ({"torchtitan": "0.3.0", "torch": "2.11.0"}, "torchtitan 0.3.0 needs torch 2.14 or newer, and 2.11.0 is inst"),
    ],
)
def test_job_and_doctor_end_with_it(there: dict[str, str], said: str, tmp_path: Path) -> None:
    """Each a process of its own, which finds other versions before those that are installed."""
    arguments = jobs.write_job(tmp_path, tmp_path)
    for name, version in there.items():
        about = tmp_path / "stack" / f"{name}-{version}.dist-info" / "METADATA"
        about.parent.mkdir(parents=True)
        about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        points = distribution(name).read_text("entry_points.txt")  # a newer torch finds gloo by them
        about.with_name("entry_points.txt").write_text(points or "")
    path = os.pathsep.join([str(tmp_path / "stack"), *filter(None, [os.environ.get("PYTHONPATH")])])
    for module, words in (("train_with_mosaic", arguments), ("cli", ["doctor", arguments[1], arguments[3]])):
        command = [sys.executable, "-m", f"mosaic_photon.{module}", *words]
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
        printed = run.stdout + run.stderr
        assert run.returncode == 1 and said in printed and "Traceback" not in printed, printed
        assert not (tmp_path / "out").exists()
