"""What a person reads in a terminal while a job runs: a line a report, each warning once, and what comes next."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.control import Control
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.segment import ControlType
from rich.text import Text

from mosaic_photon import waiting

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

LOSS, SET = "loss_metrics/global_avg_loss", "validation_metrics/"
OURS = str(Path(__file__).parents[1]) + os.sep
"""Begins the path of each of this project's files."""
OVER = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
"""To the begin of a terminal's line, in which rank 0 may have a clock; it draws it anew."""
AGENT_WAIT = timedelta(seconds=5)
"""For an answer of torchrun's agent."""
_current: Lines | None = None


class Lines:
    """In the place of TorchTitan's lines; each rank of a job has one, and prints what it alone knows.

    Args:
        steps: the job's.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.console = Console(file=sys.stdout, highlight=False)
        self._stage: Progress | None = None
        self._first: tuple[int, float] | None = None

    def say(self, text: str, style: str = "") -> None:
        if os.environ["RANK"] != "0":
            self.console.control(OVER)
        self.console.print(Text(text, style), soft_wrap=True)

    def stage(self, what: str) -> None:
        """What the job does before its first step, with a clock and what it counts; the next takes its place."""
        self.stop()
        if os.environ["RANK"] != "0":
            return
        if not self.console.is_terminal:  # nothing can move in a file
            self.say(f"{what} ...")
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), Counted(), TimeElapsedColumn())
        self._stage = Progress(*columns, console=self.console, transient=True)
        self._stage.add_task(what, total=None)
        self._stage.start()

    def stop(self) -> None:
        """No stage any more."""
        if self._stage is not None:
            self._stage.stop()
            self._stage = None

    def report(self, metrics: dict[str, Any], step: int) -> None:
        """A line for what has been logged of a step; what only callbacks have logged makes none."""
        self.stop()
        losses = {name: value for name, value in metrics.items() if name.startswith(SET) and name.endswith("/loss")}
        for name, value in losses.items():
            label = name.removeprefix(SET).removesuffix("loss").rstrip("/")
            self.say(f"step {step:>{len(f'{self.steps:,}')},}  validation {f'{label} ' if label else ''}{value:.4f}")
        if LOSS in metrics:
            now = time.monotonic()
            first_step, since = self._first = self._first or (step, now)
            done = step - first_step
            left = (self.steps - step) * (now - since) / done if done else None
            self.say(line_of(metrics, step, self.steps, int(os.environ["WORLD_SIZE"]), left))


class Counted(ProgressColumn):
    """How far what a stage waits for has come, how fast it is, and how long the rest takes where that is known."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        count = waiting.under_way()
        return Text("" if count is None else count_in_words(count, time.monotonic()), "cyan")


class Once(logging.Handler):
    """Warnings and errors, and what this project tells on rank 0: where it begins, that it stops.

    Each warning once, also where several ranks of a node have it and share a terminal.
    """

    def __init__(self, lines: Lines) -> None:
        super().__init__(logging.INFO)
        self.lines, self._said = lines, set[str]()
        self._pid, self._store = os.getpid(), agent_store() if lines.console.is_terminal else None

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.pathname.startswith(OURS) and os.environ["RANK"] == "0"
        return bool(super().filter(record)) and (ours or record.levelno >= logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        text = re.sub(r"(?<=\S) {2,}(?=\S)", " ", self.format(record))  # others break their lines within a text
        if record.levelno == logging.INFO:
            self.lines.say(text)
            return
        text = f"{record.levelname.lower()}: {text}"
        if text not in self._said and self._is_first(text):
            self.lines.say(text, "red" if record.levelno >= logging.ERROR else "yellow")
        self._said.add(text)

    def show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """`warnings.showwarning`: Python's warnings as those that are logged."""
        text = f"{message} ({category.__name__}, {filename}:{lineno})"
        self.handle(logging.LogRecord("py.warnings", logging.WARNING, filename, lineno, text, None, None))

    def _is_first(self, text: str) -> bool:
        """Whether no other rank of this node has said it; asked once a text. Who cannot know says it."""
        if self._store is None or os.getpid() != self._pid:  # a connection is not for a forked worker
            return True
        try:
            return self._store.add(f"{agent_key()}/{os.environ['GROUP_RANK']}/{text}", 1) == 1
        except RuntimeError:  # the agent is gone
            self._store = None
            return True


def agent_store() -> TCPStore | None:
    """The store that torchrun's agent keeps for the ranks; None under another launcher, or where the agent is gone."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return dist.TCPStore(address, port, timeout=AGENT_WAIT)  # type: ignore[attr-defined]
    except dist.DistError:
        return None


def agent_key() -> str:
    """Begins the keys of what the ranks of this start tell each other through `agent_store`."""
    return f"mosaic_photon/{os.environ['TORCHELASTIC_RESTART_COUNT']}"


def take_over(mode: str, steps: int) -> None:
    """Print lines in the place of TorchTitan's from now on, where `[mosaic] console` and the terminal say so."""
    global _current
    wanted = mode == "line" or (mode == "auto" and sys.stdout.isatty())
    _current = Lines(steps) if wanted else None
    if _current is not None:
        once = Once(_current)
        logging.getLogger().handlers[:] = [once]
        warnings.showwarning = once.show_warning


def current() -> Lines | None:
    """This process's; None where TorchTitan's own lines are printed."""
    return _current


def stage(what: str) -> None:
    """See `Lines.stage`."""
    if _current is not None:
        _current.stage(what)


def stop() -> None:
    """No stage any more. Safe to call where there was none."""
    if _current is not None:
        _current.stop()


def line_of(metrics: dict[str, Any], step: int, steps: int, ranks: int, left: float | None) -> str:
    """A report in one line.

    Args:
        metrics: TorchTitan's report, by name; MFU only where it is known.
        ranks: of the job, each of which has the throughput that is reported.
        left: seconds to the last step; None: not known yet.
    """
    parts = [f"step {step:>{len(f'{steps:,}')},}/{steps:,}", f"tokens {short(metrics['n_tokens_seen'])}"]
    parts += [f"loss {metrics[LOSS]:.4f}", f"lr {float(metrics['lr']):.2e}"]
    parts += [f"{short(metrics['throughput(tps)'] * ranks)} tokens/s"]
    if "mfu(%)" in metrics:
        parts.append(f"mfu {metrics['mfu(%)']:.1f}%")
    parts.append(f"data wait {metrics['time_metrics/data_loading(%)']:.1f}%")
    return "  ".join([*parts, f"left {'?' if left is None else clock(left)}"])


def count_in_words(count: waiting.Count, now: float) -> str:
    """E.g. "verified 1.2 of 80.0 GB, 512 MB/s, left 2m 34s"; without what is not known.

    Args:
        count: one that has begun.
        now: by the monotonic clock.
    """
    speed = count.done / max(now - (count.since or now), 1e-3)
    total = f" of {count.total / 1e9:.1f}" if count.total else ""
    words = f"{count.what} {count.done / 1e9:.1f}{total} GB, {speed / 1e6:.0f} MB/s"
    return f"{words}, left {clock((count.total - count.done) / speed)}" if count.total and speed else words


def short(count: float) -> str:
    """A count in four characters or so: 512, 81.9k, 1.23B."""
    for unit in ("", "k", "M", "B"):
        if count < 999.5:  # what is more is shown as 1e+03
            return f"{count:.0f}" if not unit else f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}T"


def clock(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h {minutes % 60:02}m" if minutes >= 60 else f"{minutes}m {rest:02}s"
