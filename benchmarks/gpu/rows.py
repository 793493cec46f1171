"""Rows of results, written as they come."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """What every part is told."""

    device: str
    """"cuda" or "cpu"."""
    tiny: bool
    out: Path
    bundle: Path

    def pick(self, whole: Any, tiny: Any) -> Any:
        """A size: the one that measures, or with `--tiny` the one that runs in seconds."""
        return tiny if self.tiny else whole


class Rows:
    """Appends one part's rows to results.jsonl; safe beside other parts, as each row is one write."""

    def __init__(self, out: Path, part: str, aimed: bool = True) -> None:
        """Not `aimed`: figures are not held against their targets, which are for whole sizes."""
        self.path, self.part, self.aimed = out / "results.jsonl", part, aimed

    def _write(self, **row: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"part": self.part, **row}) + "\n")

    def figure(self, name: str, value: float, unit: str, target: str = "") -> None:
        """A measured value, and the target it is to meet: `>= 0.55`, `<= 1.1`."""
        met = None
        if target and self.aimed:
            sign, bound = target.split()
            met = value >= float(bound) if sign == ">=" else value <= float(bound)
        self._write(status="ok", name=name, value=value, unit=unit, target=target, met=met)

    def check(self, name: str, error: float, tolerance: float) -> None:
        """A relative difference that must not exceed its tolerance; NaN fails."""
        right = error <= tolerance
        self._write(
            status="ok" if right else "failed", name=name, value=error, unit="difference",
            target=f"<= {tolerance:g}", met=right,
        )  # fmt: skip

    def fact(self, name: str, value: str) -> None:
        """Something to read, not to compare."""
        self._write(status="ok", name=name, value=value, unit="", target="", met=None)

    def failed(self, name: str, note: str) -> None:
        """One of the part's answers is missing; the others go on."""
        self._write(status="failed", name=name, value=note[:300], unit="", target="", met=False)

    def end(self, status: str, seconds: float, note: str) -> None:
        """The part is over; the one row of a part that the suite writes."""
        self._write(status=status, name="", value=round(seconds, 1), unit="s", target="", met=None, note=note)

    def mine(self) -> list[dict[str, Any]]:
        """The part's rows so far."""
        return [row for row in read(self.path) if row["part"] == self.part]

    def status(self) -> str:
        """How the part ended, in a line."""
        rows = self.mine()
        missed = sum(row["met"] is False for row in rows)
        return f"{self.part}: {rows[-1]['status']} in {rows[-1]['value']} s" + (f", {missed} missed" if missed else "")


def read(path: Path) -> list[dict[str, Any]]:
    """All rows of a results.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ceiling(out: Path, name: str) -> float | None:
    """What the part `ceilings` has measured, if it has."""
    found = [row["value"] for row in read(out / "results.jsonl") if row["part"] == "ceilings" and row["name"] == name]
    return found[-1] if found else None
