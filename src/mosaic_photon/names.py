"""Names: of parameters without what wrapping inserts, of values in tables, public ones on demand; sizes for people."""

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from mosaic_photon.errors import ConfigError
from mosaic_photon.foundry import NAMES, needed

WRAPPERS = ("_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module")
"""Attributes that activation checkpointing, torch.compile and FSDP 1 put between a module and its content."""


def clean_name(name: str) -> str:
    """The dotted name as the unwrapped model has it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def lazy_names(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names are imported, each from its module, when they are asked for."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(f"{package}.{homes[name]}")
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] in NAMES:
                raise ModuleNotFoundError(f"{package}.{name} {needed(error)}", name=error.name) from None
            raise
        return getattr(module, name)

    return find


def import_named(module: str, where: str) -> ModuleType:
    """Import a module that a user names.

    Args:
        module: its whole name.
        where: opens the message.

    Raises:
        ConfigError: it, or one that it imports, is not there. What else goes wrong in it is shown as it is.
    """
    if module.startswith("."):
        raise ConfigError(f"{where}: {module!r} is not the whole name of a module.")
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as error:  # ValueError: an empty name, or one between dots
        raise ConfigError(f"{where}: {error}.") from error


def dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a table and of those in it, each by its whole name."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def metric_names(names: Iterable[str], what: str = "names") -> list[str]:
    """Each name as TensorBoard takes it in a metric's: letters, digits and `_-./`.

    Args:
        what: they are, as a message begins.

    Raises:
        ConfigError: two would be one.
    """
    found: dict[str, str] = {}
    for name in names:
        clean = re.sub(r"[^-/\w.]", "_", name).strip("/") or "_"
        if clean in found:
            raise ConfigError(f"{what} {found[clean]!r} and {name!r} would both be {clean!r} in metrics; rename one.")
        found[clean] = name
    return list(found)


def human_size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
