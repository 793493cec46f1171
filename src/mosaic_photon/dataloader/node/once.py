"""What a node's processes need done once for all of them: the first does it, the others take its answer."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mosaic_photon.dataloader.node.folder import folder_of, name_of
from mosaic_photon.files import locked, write_whole

APART_S = 30.0
"""By how much a rank may be behind the first; one that is further behind asks for itself."""
_BEGUN = time.time()
_calls: Counter[str] = Counter()


def once_a_run(key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` answered in the first process of this run on this node that asked for `key`.

    A process's second call gets the second answer, so that what is opened twice is looked at twice. Processes of
    other runs wait meanwhile, and then make their own. Answers are JSON; what `make` raises is not kept.
    """
    _calls[key] += 1
    number, run = _calls[key], run_name()
    path = folder_of("once") / f"{name_of(key)}.json"
    with locked(path.with_suffix(".lock")):
        answers = _answers(path, run)
        if len(answers) < number:
            answers += [make()] * (number - len(answers))
            write_whole(path, json.dumps({"run": run, "answers": answers}).encode())
        return answers[number - 1]


def run_name() -> str:
    """The same text in all processes of this run on this node, another one in every other run."""
    launch = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
    try:
        launcher = os.getppid() if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1 else os.getpid()
        return " ".join([_started(launcher), *(os.environ.get(name, "") for name in launch)])
    except OSError:  # not Linux, or the launcher is outside the container: nobody to share answers with
        return f"{os.getpid()} {_BEGUN}"


def _answers(path: Path, run: str) -> list[dict[str, Any]]:
    """Those of this run. What a launcher that starts several has left of an earlier one is too old."""
    try:
        record = json.loads(path.read_bytes())
        fresh = path.stat().st_mtime > _BEGUN - APART_S
    except (FileNotFoundError, ValueError):
        return []
    return record["answers"] if record["run"] == run and fresh else []


def _started(process: int) -> str:
    """The process's number and when it started, as numbers come again."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot} {process} {ticks}"
