"""What a job says of all its streams, for code that llm-foundry calls with a stream's own settings only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """In force while a dataset is opened. The defaults are those of a tool that looks at data, not of a job."""

    node_folder: str = ""
    """`[mosaic] node_folder`, for `node_folder.node_folder`."""

    patience: float = 0.0
    """Seconds to wait for a remote that does not answer."""


_settings: ContextVar[Settings] = ContextVar("settings", default=Settings())  # noqa: B039  (it is frozen)


def settings() -> Settings:
    """Those in force."""
    return _settings.get()


@contextmanager
def in_force(given: Settings) -> Iterator[None]:
    """Within it, datasets are opened with these settings."""
    token = _settings.set(given)
    try:
        yield
    finally:
        _settings.reset(token)
