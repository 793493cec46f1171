"""The text of a data config: TOML, or YAML as OmegaConf reads it, which is llm-foundry's reader."""

from __future__ import annotations

import io
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    import yaml
    from omegaconf.errors import OmegaConfBaseException


def read_tables(path: Path) -> dict[str, Any]:
    """The file's tables, `${...}` as they stand there.

    Raises:
        ConfigError: it cannot be read, is malformed, is no table, or gives a key twice.
    """
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".yaml", ".yml"):
        raise ConfigError(f"{path}: a data config ends in .toml, .yaml or .yml")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the data config: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the data config is not UTF-8 text: {error}") from error
    if suffix != ".toml":
        return _read_yaml(text, path)
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: malformed TOML: {error}") from error


def interpolated(raw: dict[str, Any], keys: Iterable[str], path: Path) -> dict[str, Any]:
    """The tables named by `keys`, with `${...}` resolved against the whole file as llm-foundry does.

    Raises:
        ConfigError: a `${...}` that has no value, or a value `???`, which OmegaConf takes for one still to be given.
    """
    tables = {key: raw[key] for key in keys if key in raw}
    if not any(mark in str(tables) for mark in ("${", "???")):
        return tables
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        whole = OmegaConf.create(raw)
        found = {key: whole[key] for key in tables}
        return {
            key: OmegaConf.to_container(one, resolve=True, throw_on_missing=True) if OmegaConf.is_config(one) else one
            for key, one in found.items()
        }
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_in_one_line(error)}") from error


def _read_yaml(text: str, path: Path) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                f"{path}: expected tables, found {'list' if isinstance(root, yaml.SequenceNode) else 'text'}"
            )
        _check_keys_differ(root, path)
        tables: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except ConfigError:
        raise
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_in_one_line(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: `0x_`, `!!int x`
        raise ConfigError(f"{path}: malformed YAML: {error}") from error
    return tables


def _check_keys_differ(root: yaml.Node | None, path: Path) -> None:
    """YAML lets the last of two equal keys win, and OmegaConf sees only those that are text."""
    import yaml

    nodes: list[yaml.Node | None] = [root]
    seen: set[int] = set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias stands in several places
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
            _check_keys_of(node, path)


def _check_keys_of(table: yaml.MappingNode, path: Path) -> None:
    lines: dict[str, int] = {}
    for key, _ in table.value:
        name, line = str(key.value), key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":  # `<<` may stand there for each table that is merged
            continue
        if name in lines:
            raise ConfigError(f"{path}: the key {name!r} is given twice, in lines {lines[name]} and {line}")
        lines[name] = line


def _in_one_line(error: OmegaConfBaseException) -> str:
    """What OmegaConf says, with the key in front."""
    text = str(error).splitlines()[0]
    return f"{error.full_key}: {text}" if error.full_key else text
