"""Each file of compat/ says which releases need it; there it is still needed, and elsewhere it is not applied."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import jobs
from mosaic_photon import titan

SRC = jobs.ROOT / "src" / "mosaic_photon"
NO_WORKAROUNDS = {"__init__", "counter_random"}
FILES = {path.stem: path for path in (SRC / "compat").glob("*.py") if path.stem not in NO_WORKAROUNDS}
ELSEWHERE = {
    "ddp_gradients": "with it, gradients that are summed already are N times too large: tests/test_layouts.py",
    "pipeline_gradients": "with it, gradients that are divided already are divided twice: tests/test_layouts.py",
}
"""Defects whose end another test shows."""
ALONE = {"cpu_device_type": "torchtitan.tools.utils", "streaming_lazy_package": "streaming.base"}
"""Those that an import shows, in a process of its own."""


def needed(name: str) -> Requirement:
    """What a file says."""
    for node in ast.parse(FILES[name].read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NEEDED":
            return Requirement(ast.literal_eval(node.value))
    raise AssertionError(f"compat/{name}.py does not say NEEDED")


def is_needed(name: str, installed: str | None = None) -> bool:
    """Whether a version of its package, or the one that is installed, has the defect."""
    wanted = needed(name)
    return wanted.specifier.contains(installed or version(wanted.name), prereleases=True)


HERE = [name for name in sorted(FILES) if is_needed(name)]


@pytest.mark.parametrize("name", sorted(FILES))
def test_it_says_when_it_goes(name: str) -> None:
    assert re.search(r"\bDelete\b", str(ast.get_docstring(ast.parse(FILES[name].read_text()))))
    assert needed(name).name in ("torch", "torchtitan", "mosaicml", "llm-foundry", "mosaicml-streaming", "shtab")


@pytest.mark.parametrize(("folder", "release"), [("v02", "0.2.2"), ("v03", "0.3.0")])
def test_a_release_takes_those_that_it_needs(folder: str, release: str) -> None:
    taken = set()
    for path in (SRC / "titan" / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mosaic_photon.compat"):
                taken |= {node.module.rpartition(".")[2], *(alias.name for alias in node.names)} & FILES.keys()
    of_titan = {name for name in taken if needed(name).name == "torchtitan"}
    assert of_titan and {name for name in of_titan if not is_needed(name, release)} == set()


def test_on_a_cpu_those_are_applied_that_are_needed() -> None:
    applied = {module.__name__.rpartition(".")[2] for module in titan.release().CPU_WORKAROUNDS}
    assert applied == {name for name in HERE if name.startswith("cpu_")} - {"cpu_device_type"}


def test_the_table_of_the_docs() -> None:
    text = (jobs.ROOT / "docs" / "upstream.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]*) \| ([^|]*) \|$", text[text.index("| needed on |") :], re.MULTILINE))
    said = {key: set(re.findall(r"`(\w+)`", row)) & FILES.keys() for key, row in rows.items()}
    of_titan = {name for name in FILES if needed(name).name in ("torch", "torchtitan")}
    both = {name for name in of_titan if is_needed(name, "0.2.2") and is_needed(name, "0.3.0")}
    old = {name for name in of_titan if needed(name).name == "torch" and not is_needed(name, "2.15.0")}
    assert said["both"] == both - old
    assert said["a torch before 2.15"] == old
    assert said["0.2.2"] == of_titan - both - said["0.3"]
    assert said["0.3"] == {name for name in of_titan - both if is_needed(name, "0.3.0")}
    assert set.union(*said.values()) == of_titan


@pytest.fixture(scope="module")
def defects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool | str]:
    """What is still wrong without the workarounds."""
    out = tmp_path_factory.mktemp("defects") / "found.json"
    names = [name for name in HERE if name not in ELSEWHERE.keys() | ALONE.keys()]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(__file__).parent / "defects.py"
    done = subprocess.run([*command, str(script), str(out), *names], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", [name for name in HERE if name not in ELSEWHERE.keys() | ALONE.keys()])
def test_it_is_still_needed(name: str, defects: dict[str, bool | str]) -> None:
    assert defects[name] is True, f"upstream has mended what compat/{name}.py is for: {defects[name]}"


@pytest.mark.parametrize("name", ALONE)
def test_an_import_still_needs_it(name: str) -> None:
    says = {
        "cpu_device_type": "print(sys.modules['torchtitan.tools.utils'].device_type == 'cuda')",
        "streaming_lazy_package": "print('transformers' in sys.modules)",
    }[name]
    code = f"import sys, {ALONE[name]}; {says}"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split()[-1] == "True"
