"""The map in docs/architecture.md is drawn from the table that the imports are held to."""

from __future__ import annotations

import re
import sys

import jobs

sys.path.insert(0, str(jobs.ROOT / "docs"))
import draw_map


def test_the_drawing_is_the_table_s() -> None:
    assert draw_map.PAGE.read_text() == draw_map.with_drawing(draw_map.PAGE.read_text()), "run docs/draw_map.py"


def test_files_that_the_pages_name_are_there() -> None:
    there = [f"/{path.relative_to(jobs.ROOT)}/" for room in ("src", "tests") for path in (jobs.ROOT / room).rglob("*")]
    for page in (draw_map.PAGE, jobs.ROOT / "CONTRIBUTING.md"):
        for name in re.findall(r"`(?!\.)((?:\w+/)+(?:\w+\.py)?)(?::[^`]*)?`", page.read_text()):
            assert any(path.endswith(f"/{name.strip('/')}/") for path in there), f"{page.name}: {name}"
