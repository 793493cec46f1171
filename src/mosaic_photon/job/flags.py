"""Flags that win over a job's TOML, in the ways that people write them.

--training.steps=20   --training.steps 20   --training.local-batch-size=2   --checkpoint.initial_load_path=None
--compile.enable   --compile.enable=true   --compile.no-enable   --compile.components=model,loss
--compile.components model loss   --model.overrides.n_layers=2   --model.overrides='{n_layers = 2}'
--optimizer.kwargs.betas=0.9,0.95   --callbacks.speed_monitor.window_size=5   --callbacks.my.module:Class.key=3
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from mosaic_photon.errors import ConfigError, nearest_if_close
from mosaic_photon.job.kinds import (
    FALSE,
    TRUE,
    describe,
    from_words,
    is_choice,
    is_dict,
    is_table,
    may_be_list,
    options_of,
    types_of,
)


def apply_flags(values: dict[str, Any], flags: list[str], job: type) -> None:
    """Write what flags say into a job's values, as they were read from TOML.

    Args:
        values: table -> field -> value; changed.
        flags: words of the command line.
        job: the job's dataclass.

    Raises:
        ConfigError: a flag that there is not, or a value of the wrong type.
    """
    words = list(flags)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{word!r} after `--` belongs to no flag: --TABLE.FIELD=VALUE is right.")
        flag, equals, text = word.partition("=")
        path, expected, negated = find(flag, job)
        given = [text] if equals else _words_of_value(words, expected, negated)
        _write(values, path, _value(flag, given, expected, negated), flag)


def find(flag: str, job: type) -> tuple[list[str], Any, bool]:
    """The path of the field that a flag names; its type; and whether the flag is its `no-` form.

    Raises:
        ConfigError: there is no such field, or it is a table.
    """
    path: list[str] = []
    expected: Any = job
    parts = flag.removeprefix("--").split(".")
    while parts and is_table(expected):
        name, known = parts.pop(0).replace("-", "_"), types_of(expected)
        positive = name.removeprefix("no_")
        if name not in known and bool in options_of(known.get(positive)) and not parts:
            return [*path, positive], bool, True
        if name not in known:
            raise ConfigError(f"{flag}: there is no such flag.{_close(flag, job)} `-- --help` lists all.")
        path.append(name)
        expected = known[name]
    if is_table(expected):
        fields = ", ".join(f"--{'.'.join([*path, name])}" for name in types_of(expected))
        raise ConfigError(f"{flag} is a table; its fields have flags: {fields}.")
    if parts and not is_dict(expected):
        raise ConfigError(f"{flag}: --{'.'.join(path)} is no table.")
    end = next((number + 1 for number, part in enumerate(parts) if ":" in part), 0)  # of a class's path, one name
    keys = [".".join(parts[:end])] * bool(end) + [part.replace("-", "_") for part in parts[end:]]
    return [*path, *keys], Any if keys else expected, False


def names_of(table: type, prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields of a table and of the tables in it."""
    for name, expected in types_of(table).items():
        if is_table(expected):
            yield from names_of(expected, f"{prefix}{name}.")
        else:
            yield prefix + name


def _write(values: dict[str, Any], path: list[str], value: Any, flag: str) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):  # within a table of free keys
            raise ConfigError(f"{flag}: {name} = {values!r} is no table.")
    values[path[-1]] = value


def _close(flag: str, job: type) -> str:
    written = "--" + flag.removeprefix("--").replace("-", "_")
    return nearest_if_close(written, [f"--{name}" for name in names_of(job)])


def _words_of_value(words: list[str], expected: Any, negated: bool) -> list[str]:
    """Take the words after a flag without `=` that are its value: for a list all up to the next flag, else one."""
    options = options_of(expected)
    if negated or (bool in options and not (words and words[0].lower() in TRUE | FALSE)):
        return []
    most = len(words) if may_be_list(expected) else 1
    given: list[str] = []
    while words and len(given) < most and not words[0].startswith("--"):
        given.append(words.pop(0))
    return given


def _value(flag: str, given: list[str], expected: Any, negated: bool) -> Any:
    if negated and given:
        raise ConfigError(f"{flag}={given[0]} takes no value: the flag with `no-` is the one without it, set to false.")
    if not given and bool in options_of(expected):
        return not negated
    if not given:
        raise ConfigError(f"{flag} needs a value, {describe(expected)}.")
    try:
        return from_words(given, expected)
    except ValueError:
        text = " ".join(given)
        choices = [choice for option in options_of(expected) if is_choice(option) for choice in typing.get_args(option)]
        raise ConfigError(
            f"{flag} = {text!r} should be {describe(expected)}.{nearest_if_close(text, choices)}"
        ) from None
