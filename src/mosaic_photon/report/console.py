"""What a person reads in a terminal while a job runs: a line a report, each warning once, and what comes next."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

LOSS, SET = "loss_metrics/global_avg_loss", "validation_metrics/"
OURS = str(Path(__file__).parents[1]) + os.sep
"""Begins the path of each of this project's files."""
_current: Lines | None = None


class Lines:
    """In the place of TorchTitan's lines; each rank of a job has one, and prints what it alone knows.

    Args:
        steps: the job's.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.console = Console(file=sys.stdout, highlight=False)
        self._stages = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=self.console, transient=True
        )
        self._first: tuple[int, float] | None = None

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True)

    def stage(self, what: str) -> None:
        """What the job does before its first step, with a clock; the next stage takes its place."""
        if os.environ["RANK"] != "0":
            return
        for task in self._stages.task_ids:
            self._stages.remove_task(task)
        self._stages.add_task(what, total=None)
        self._stages.start()

    def stop(self) -> None:
        """No stage any more."""
        self._stages.stop()

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


class Once(logging.Handler):
    """Warnings and errors, and what this project tells on rank 0: where it begins, that it stops. Each text once."""

    def __init__(self, lines: Lines) -> None:
        super().__init__(logging.INFO)
        self.lines, self._said = lines, set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.pathname.startswith(OURS) and os.environ["RANK"] == "0"
        return bool(super().filter(record)) and (ours or record.levelno >= logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        text = re.sub(r"(?<=\S) {2,}(?=\S)", " ", self.format(record))  # others break their lines within a text
        if record.levelno == logging.INFO:
            self.lines.say(text)
            return
        text = f"{record.levelname.lower()}: {text}"
        if text not in self._said:
            self._said.add(text)
            self.lines.say(text, "red" if record.levelno >= logging.ERROR else "yellow")


def take_over(mode: str, steps: int) -> None:
    """Print lines in the place of TorchTitan's from now on, where `[mosaic] console` and the terminal say so."""
    global _current
    wanted = mode == "line" or (mode == "auto" and sys.stdout.isatty())
    _current = Lines(steps) if wanted else None
    if _current is not None:
        logging.getLogger().handlers[:] = [Once(_current)]


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
