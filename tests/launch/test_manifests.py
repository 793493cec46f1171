"""docs/launch.md's Kubernetes and SkyPilot manifests are what those programs take."""

import subprocess
from pathlib import Path

import pytest

import jobs

pytestmark = pytest.mark.launch
PYTHON = jobs.ROOT / "build" / "manifests" / "bin" / "python"  # made by `make test-launch`
SCRIPT = Path(__file__).with_name("check_manifests.py")


def check(document: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYTHON, SCRIPT, document], capture_output=True, text=True)


def test_each_manifest_fits_its_schema() -> None:
    checked = check(jobs.ROOT / "docs" / "launch.md")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.splitlines() == ["kubernetes Service", "kubernetes Job", "skypilot pretrain"]


@pytest.mark.parametrize("key", ["completionMode:", "file_mounts:"])
def test_a_misspelt_key_is_found(tmp_path: Path, key: str) -> None:
    text = (jobs.ROOT / "docs" / "launch.md").read_text()
    assert key in text
    (tmp_path / "launch.md").write_text(text.replace(key, f"my_{key}"))
    assert f"my_{key[:-1]}" in check(tmp_path / "launch.md").stderr
