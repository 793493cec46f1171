"""The wheel in an empty environment, with each TorchTitan: what docs/install.md promises."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jobs

UV = Path(sys.prefix) / "bin" / "uv"
TITAN = {"titan02": "0.2.2", "titan": "0.3.0"}


def run(*command: object, folder: Path) -> str:
    """What the command prints, run outside the repository; it must succeed."""
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=jobs.ROOT)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extra", TITAN)
def test_llama_trains_from_the_wheel_alone_and_an_mpt_with_the_list_that_it_brings(
    extra: str, wheel: Path, tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    python = tmp_path / "env/bin/python"
    run(UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "env", folder=tmp_path)
    install = [UV, "pip", "install", "--quiet", "--no-config", "--python", python]
    run(*install, f"{wheel}[{extra}]", folder=tmp_path)
    train = [python, "-m", "mosaic_photon.train_with_mosaic", *jobs.write_job(tmp_path, prepared_data), "--"]
    printed = run(*train, "--training.steps=5", "--optimizer.name=QHADOPT", folder=tmp_path)
    assert "step:  5" in printed and "Training completed" in printed

    first = run(tmp_path / "env/bin/mosaic-photon", "init", "first run", "--mds", prepared_data, folder=tmp_path)
    command = first.partition("train:\n")[2].splitlines()[0].strip()  # the README's way
    printed = run("bash", "-c", f"{command} -- --training.steps=2 --metrics.log_freq=1", folder=tmp_path)
    assert "step:  2" in printed and "Training completed" in printed

    doctor = run(python, "-m", "mosaic_photon.cli", "doctor", folder=tmp_path)
    assert f"torchtitan {TITAN[extra]}" in doctor
    words = doctor.partition("pip install --no-deps -r ")[2]
    pins = words.partition(" ")[0]
    assert Path(pins).is_relative_to(tmp_path / "env"), doctor
    run(*install, "--no-deps", "-r", pins, folder=tmp_path)
    doctor = run(python, "-m", "mosaic_photon.cli", "doctor", folder=tmp_path)
    assert "llm-foundry and Composer: llm-foundry 0.22.0, mosaicml 0.32.1" in doctor
    mpt = jobs.JOB.replace("llama3_mosaic", "mpt_mup_mosaic").replace("dim = 64", "d_model = 64")
    arguments = jobs.write_job(tmp_path / "mpt", prepared_data, mpt + "[callbacks.lr_monitor]\n")
    assert "Training completed" in run(*train[:3], *arguments, folder=tmp_path)


def test_the_list_is_the_lock_s() -> None:
    """foundry.txt has what llm-foundry, Composer and this package need, but torch, as requirements.lock has it."""
    listed = _pins(jobs.ROOT / "src/mosaic_photon/foundry.txt")
    locked = _pins(jobs.ROOT / "requirements.lock")
    assert {"mosaicml", "llm-foundry", "setuptools", "mlflow", "tensorboard"} <= listed.keys()
    assert not {"torch", "torchvision", "torchtitan", "triton"} & listed.keys()
    assert {name: versions - locked[name] for name, versions in listed.items()} == {name: set() for name in listed}


def test_no_dependency_of_the_wheel_bounds_torch_from_above() -> None:
    """Or pip would not resolve: llm-foundry and Composer are in a group, which no wheel has."""
    project = tomllib.loads((jobs.ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    assert [line for line in asked if line.startswith(("llm-foundry", "mosaicml=="))] == []
    assert "torch>=2.11" in asked


def _pins(path: Path) -> dict[str, set[str]]:
    """Versions by name, as a requirements file has them."""
    pins: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        name, pinned, version = line.partition("==")
        if pinned and not line.startswith((" ", "#")):
            pins.setdefault(name, set()).add(version.split()[0])
    return pins
