"""A config as a user hands it over: a file, or from Python its tables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from mosaic_photon.errors import ConfigError

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""The path of a config, or what would stand in it."""


def opened(source: Source, kind: str) -> tuple[str, dict[str, Any] | None]:
    """What messages call a config, and its tables, a copy; None where it is a file that is still to be read.

    Args:
        kind: "job config" or "data config".

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(source, Mapping):
        return kind, _plain(source)
    if isinstance(source, str | os.PathLike):
        return os.fspath(source), None
    raise ConfigError(f"{kind}: expected the path of a file, or its tables as a dict, found {source!r}")


def _plain(value: Any) -> Any:
    """A copy of tables and lists, with paths as text."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
