"""What commands share of a terminal: a console, a bar, and text that comes from or goes to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 160
"""Columns of what is no terminal and has no width: enough for a row on one line."""


def console() -> Console:
    """Of stdout."""
    from rich.console import Console

    out = Console()
    if not out.is_terminal:
        out.width = PIPE_WIDTH
    return out


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, gone at the end; yields what is told how much more is done."""
    from rich.console import Console
    from rich.progress import Progress

    out = Console(stderr=True)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def printable(text: str, kept: str = "") -> str:
    """The text without control characters but those kept, as data could use them to write over the terminal."""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def check_nodes(nodes: int, per_node: int) -> None:
    """Raises ConfigError for a number of machines, or of processes on each, that no job has."""
    if nodes < 1 or per_node < 1:
        raise ConfigError(f"--nnodes {nodes} --nproc-per-node {per_node}: both must be at least 1, as in torchrun.")


def check_text(option: str, text: str) -> None:
    """Raises ConfigError: the command line's bytes were no UTF-8, so that the string has stand-ins for them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{option} {text!r} is not UTF-8.") from error
