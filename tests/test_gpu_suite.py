"""The GPU suite without a GPU: its bundle makes an environment over a bare torch in which every part runs."""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_suite  # noqa: E402
from gpu.parts import PARTS, Part  # noqa: E402

EVERY_MODULE = """
NOT_CARRIED = "v03", "on_ray", "report.counts", "report.page", "report.picture"  # for 0.3, Ray, bokeh, matplotlib
import importlib, pkgutil, mosaic_photon.compat
names = [m.name for m in pkgutil.walk_packages(mosaic_photon.__path__, "mosaic_photon.")]
for name in names:
    if not name.endswith("__main__") and not any(part in name for part in NOT_CARRIED):
        importlib.import_module(name)
print(len(names), mosaic_photon.__file__)
"""


def options(out: Path) -> argparse.Namespace:
    return argparse.Namespace(out=out, device="cpu", tiny=True, bundle=out / "no-bundle")


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_part_that_fails_or_outlasts_its_limit_or_finds_no_time_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forever = time.monotonic() + 1000
    gpu_suite.run_part(Part("no such part", "", 60, ""), options(tmp_path), forever)
    gpu_suite.run_part(Part("attention", "", 1, ""), options(tmp_path), forever)
    monkeypatch.setattr(gpu_suite, "LEAST_S", 0)
    gpu_suite.run_part(Part("attention", "", 0, ""), options(tmp_path), forever)
    assert [(row["part"], row["status"]) for row in rows(tmp_path)] == [
        ("no such part", "failed"), ("attention", "skipped"), ("attention", "timeout")
    ]  # fmt: skip
    assert "StopIteration" in rows(tmp_path)[0]["note"]


def test_parts_that_time_something_run_alone() -> None:
    together = gpu_suite.batches(PARTS, "cuda")
    assert all(len(parts) == 1 for parts in together if any(part.alone for part in parts))
    assert [part for parts in together for part in parts] == list(PARTS)
    assert max(len(parts) for parts in gpu_suite.batches(PARTS, "cpu")) == 1


def link_torch(site: Path) -> None:
    """Give an environment this one's torch and what torch requires, and nothing else."""
    wanted, linked = ["torch"], set()
    while wanted:
        name = wanted.pop()
        if name in linked:
            continue
        linked.add(name)
        distribution = importlib.metadata.distribution(name)
        for entry in {Path(str(file)).parts[0] for file in distribution.files or []} - {".."}:
            target, link = Path(str(distribution.locate_file(entry))), site / entry
            if target.exists() and not link.exists():
                link.symlink_to(target)
        for requirement in distribution.requires or []:
            found = re.split(r"[\s;<>=!~\[(]", requirement)[0]
            if "extra ==" not in requirement and installed(found):
                wanted.append(found)


def installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle for this Python, set up over an environment that has torch alone."""
    folder = tmp_path_factory.mktemp("gpu")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    build = [sys.executable, "-m", "gpu.bundle", "--out", str(folder / "bundle"), "--python", version]
    subprocess.run(build, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}/benchmarks:{ROOT}/src"})
    subprocess.run([sys.executable, "-m", "venv", str(folder / "bare")], check=True)
    link_torch(next((folder / "bare" / "lib").glob("python*/site-packages")))
    bare = without_pythonpath() | {"PYTHON": str(folder / "bare" / "bin" / "python")}
    subprocess.run(["sh", str(folder / "bundle" / "setup.sh"), str(folder / "run")], check=True, env=bare)
    return folder


def without_pythonpath() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "MASTER_"))}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bundle_s_environment_imports_every_module_and_refuses_what_is_a_stub(environment: Path) -> None:
    python = str(environment / "run" / "python")
    printed = subprocess.run(
        [python, "-c", EVERY_MODULE], check=True, capture_output=True, text=True, env=without_pythonpath()
    ).stdout
    assert str(environment / "run" / "site") in printed
    used = subprocess.run(
        [python, "-c", "import boto3\nboto3.client('s3')"], capture_output=True, text=True, env=without_pythonpath()
    )
    assert "boto3.client is a stub of the GPU bundle" in used.stderr


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_part_runs_on_a_cpu_in_the_bundle_s_environment(environment: Path) -> None:
    out = environment / "results"
    command = [str(environment / "run" / "python"), str(ROOT / "benchmarks" / "gpu_suite.py"), "--device=cpu", "--tiny"]
    done = subprocess.run(
        [*command, "--minutes=38", f"--out={out}", f"--bundle={environment / 'bundle'}"],
        capture_output=True, text=True, env=without_pythonpath() | {"MOSAIC_PHOTON_SRC": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = {row["part"]: row["status"] for row in rows(out) if not row["name"]}
    failed = [row for row in rows(out) if row["status"] != "ok"]
    assert ends == {part.name: "ok" for part in PARTS}, failed
    assert (out / "results.md").read_text() in done.stdout
