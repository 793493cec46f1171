"""The sets that a data config names for validation: one without a label, llm-foundry's list, or a table for each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mosaic_photon.errors import ConfigError

ONE, SEVERAL, FOUNDRY = "mosaic_eval_dataloader", "mosaic_eval_dataloaders", "eval_loader"
KEYS = (ONE, SEVERAL, FOUNDRY)
LABEL = re.compile(r"[\w.-]+(/[\w.-]+)*")
"""What TensorBoard and W&B write as it stands, as part of a metric's name."""


def key_of(raw: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> str | None:
    """Which of these tables, of which a file may have one, it has. Raises ConfigError: several of them."""
    found = [key for key in keys if key in raw]
    if len(found) > 1:
        raise ConfigError(f"{path}: has both {found[0]} and {found[1]}; all of it belongs into one of them")
    return found[0] if found else None


def sets_of(value: Any, key: str, path: Path) -> dict[str, Any]:
    """The loaders by label, those of a list without the key `label`; "" is the label of a set that has none.

    Raises:
        ConfigError: two sets of one label, a label that names no metric, or none in a list of several.
    """
    if key == SEVERAL and isinstance(value, dict):
        for label in value:
            _check_label(str(label), key, path)
        return {str(label): loader for label, loader in value.items()}
    if not isinstance(value, list):
        value = [value] if value != {} else []
    sets: dict[str, Any] = {}
    for number, loader in enumerate(value):
        label = ""
        if isinstance(loader, dict):
            label = "" if loader.get("label") is None else str(loader["label"])
            loader = {name: one for name, one in loader.items() if name != "label"}
        if label:
            _check_label(label, key, path)
        elif len(value) > 1:
            raise ConfigError(
                f"{path}: {key}[{number}] has no label; each loader of a list needs one, which names its metrics"
            )
        if label in sets:
            raise ConfigError(f"{path}: {key}: two loaders have the label {label!r}; give each its own")
        sets[label] = loader
    return sets


def evaluator(label: str) -> str:
    """What llm-foundry calls a set's evaluator, and Composer its metrics: metrics/eval/LABEL/..."""
    return f"eval/{label}" if label else "eval"


def place(key: str, label: str) -> str:
    """A set's table in messages."""
    return f"{key}.{label}" if label else key


def place_in_job(label: str) -> str:
    """The same where the file's own key is not known."""
    return place(SEVERAL if label else ONE, label)


def _check_label(label: str, key: str, path: Path) -> None:
    if not LABEL.fullmatch(label):
        raise ConfigError(
            f"{path}: {key}: the label {label!r} cannot be part of a metric's name: letters, digits, '_', '-' and '.' "
            "are right, in parts with '/' between them"
        )
