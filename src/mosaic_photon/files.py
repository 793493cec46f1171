"""Small files read and written whole, and paths as a message shows them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mosaic_photon.errors import ConfigError


def write_json(path: Path, content: object) -> None:
    """Write whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: it cannot be read or is malformed; the message ends with the remedy.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {display(path)} ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{display(path)} holds no JSON object, but {type(content).__name__}: {remedy}")
    return content


def display(path: str | Path) -> str:
    """A path as the user would write it, relative where it is below the working folder; always printable."""
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    shown = absolute if relative.startswith("..") else relative
    return shown.encode("utf-8", "backslashreplace").decode()
