"""results.md: a table of figures and a table of parts, from results.jsonl."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpu.parts import PARTS
from gpu.rows import read

PACKAGES = ("torch", "triton", "torchtitan", "llm-foundry", "mosaicml", "transformers", "numpy")


def markdown(out: Path) -> str:
    """The whole report."""
    rows = read(out / "results.jsonl")
    figures = [row for row in rows if row["name"]]
    ends = [row for row in rows if not row["name"]]
    lines = [f"{datetime.date.today()}, Python {platform.python_version()}, {versions()}", ""]
    lines += ["| part | what | value | target | met |", "|---|---|---|---|---|"]
    lines += [f"| {row['part']} | {row['name']} | {shown(row)} | {row['target']} | {met(row)} |" for row in figures]
    lines += ["", "| part | asks | status | s | note |", "|---|---|---|---|---|"]
    asks = {part.name: part.asks for part in PARTS}
    lines += [
        f"| {row['part']} | {asks[row['part']]} | {row['status']} | {row['value']} | {row['note']} |" for row in ends
    ]
    return "\n".join(lines) + "\n"


def versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def shown(row: dict[str, Any]) -> str:
    value = row["value"]
    return f"{value:.4g} {row['unit']}".strip() if isinstance(value, float | int) else str(value).replace("|", "/")


def met(row: dict[str, Any]) -> str:
    return {True: "yes", False: "**no**", None: ""}[row["met"]]
