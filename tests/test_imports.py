"""What may know what: every import in src goes along an arrow of `allowed_imports.toml`, and none of them in circles.

All imports count for the arrows between rooms, those inside functions and those for annotations alike. For circles
between files those count that run, at import or in a function; a name for an annotation only runs nothing.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import jobs

SRC = jobs.ROOT / "src" / "mosaic_photon"
PACKAGE = SRC.name
TABLE = tomllib.loads((Path(__file__).parent / "allowed_imports.toml").read_text())


@dataclass(frozen=True)
class Arrow:
    """One file's import of another, both as dotted names within the package, or of an upstream package."""

    source: str
    target: str
    runs: bool
    """False where it is for annotations only."""


def arrows(src: Path) -> Iterator[Arrow]:
    """All imports of the package's own modules and of TorchTitan in the files below `src`."""
    files = {_name(path, src): path for path in src.rglob("*.py")}
    for name, path in files.items():
        for node, runs in _imports(ast.parse(path.read_text()), True):
            for target in _targets(node, files):
                if target != name:
                    yield Arrow(name, target, runs)


def _name(path: Path, src: Path) -> str:
    return ".".join(path.relative_to(src).with_suffix("").parts)


def _imports(node: ast.AST, runs: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, runs
    in_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, runs and not in_types)


def _targets(node: ast.Import | ast.ImportFrom, files: Iterable[str]) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports name their module in full"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        names = [alias.name for alias in node.names]
    for dotted in names:
        head, _, rest = dotted.partition(".")
        if head == PACKAGE:
            parts = rest.split(".")
            tried = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            yield next((name for one in tried for name in (one, f"{one}.__init__") if name in files), "__init__")
        elif head == "torchtitan":
            yield "torchtitan"


def room_of(name: str, rooms: Iterable[str]) -> str:
    """The room that a file lies in: the longest that its name begins with."""
    found = [room for room in rooms if name == room or name.startswith(f"{room}.")]
    assert found, f"{name} lies in no room of allowed_imports.toml"
    return max(found, key=len)


def faults(src: Path, table: dict[str, Any]) -> list[str]:
    """Everything in `src` that the table does not allow."""
    members = {member: room for room, names in table["files"].items() for member in names}
    rooms = {room: set(names) for room, names in table["rooms"].items()}
    debts = {(source, target) for source, targets in table["debts"].items() for target in targets}
    places = {**{room: room for room in rooms if room not in table["files"]}, **members}
    found, seen = [], set()
    files: dict[str, set[str]] = {}
    for arrow in arrows(src):
        pair = (arrow.source, arrow.target)
        if pair in debts:
            seen.add(pair)
            continue
        home = places[room_of(arrow.source, places)]
        if arrow.target == "torchtitan":
            if home not in ("titan", "compat"):
                found.append(f"{arrow.source} names torchtitan: take it from {PACKAGE}.titan")
            continue
        away = places[room_of(arrow.target, places)]
        if home != away and away not in rooms[home]:
            found.append(f"{arrow.source} -> {arrow.target}: {home} may not know {away}")
        if arrow.runs:
            files.setdefault(arrow.source, set()).add(arrow.target)
    found += [f"{source} -> {target} is a debt no more: strike it out" for source, target in sorted(debts - seen)]
    found += [f"a circle of rooms: {circle}" for circle in _circle(rooms)]
    found += [f"a circle of files: {circle}" for circle in _circle(files)]
    return sorted(set(found))


def _circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(reversed(error.args[1]))]
    return []


def test_imports_go_along_the_arrows():
    assert faults(SRC, TABLE) == []


def plant(tmp_path: Path, files: dict[str, str]) -> list[str]:
    """What is found in a package of these files, under the project's table without its debts."""
    for name, text in files.items():
        path = tmp_path / PACKAGE / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return faults(tmp_path / PACKAGE, {**TABLE, "debts": {}})


def test_only_the_door_asks_which_release_of_titan_it_is():
    rooms = {path.relative_to(SRC).parts[0] for path in SRC.rglob("*.py") if "installed().folder" in path.read_text()}
    assert rooms == {"titan"}


def test_a_wrong_arrow_is_found_wherever_it_stands(tmp_path):
    upward = "def late():\n    from mosaic_photon.cli.prepare import run\n"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mosaic_photon.models import m\n"
    titan = "import torchtitan.train\n"
    files = {"errors": upward, "optimizers/o": typed, "train/t": titan, "cli/prepare": "", "models/m": ""}
    assert plant(tmp_path, files) == [
        "errors -> cli.prepare: shared may not know cli",
        "optimizers.o -> models.m: optimizers may not know models",
        "train.t names torchtitan: take it from mosaic_photon.titan",
    ]


def test_a_circle_of_files_is_found(tmp_path):
    here, there = "from mosaic_photon.mup import b", "def late():\n    from mosaic_photon.mup.a import f\n"
    assert [fault.split(":")[0] for fault in plant(tmp_path, {"mup/a": here, "mup/b": there})] == ["a circle of files"]


def test_a_circle_of_rooms_and_a_debt_that_is_paid_are_found(tmp_path):
    rooms = {**TABLE["rooms"], "mup": ["shared", "models"]}
    debts = {"mup.table": ["cli.doctor"]}
    (tmp_path / PACKAGE).mkdir()
    found = faults(tmp_path / PACKAGE, {**TABLE, "rooms": rooms, "debts": debts})
    assert [fault.split(":")[0] for fault in found] == [
        "a circle of rooms",
        "mup.table -> cli.doctor is a debt no more",
    ]
