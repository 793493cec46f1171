"""The types that fields of a job's tables have: whether a value is of one, in words, and as people write one."""

from __future__ import annotations

import dataclasses
import datetime
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from mosaic_photon.errors import ConfigError

TRUE, FALSE, NONE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}, {"none", "null"}


def types_of(table: type) -> dict[str, Any]:
    """The fields of a table's dataclass, with their types."""
    hints = typing.get_type_hints(table)
    return {field.name: hints[field.name] for field in dataclasses.fields(table)}


def is_table(expected: Any) -> bool:
    """Whether a field is a table with fields of its own."""
    return isinstance(expected, type) and dataclasses.is_dataclass(expected)


def is_dict(expected: Any) -> bool:
    """Whether a field is a table whose keys are free."""
    return dict in (expected, typing.get_origin(expected))


def is_list(expected: Any) -> bool:
    return typing.get_origin(expected) in (list, tuple)


def may_be_list(expected: Any) -> bool:
    """Whether several words can be a value of the type."""
    return any(option is Any or is_list(option) for option in options_of(expected))


def is_choice(expected: Any) -> bool:
    return typing.get_origin(expected) is typing.Literal


def options_of(expected: Any) -> tuple[Any, ...]:
    """The types that a value may have."""
    is_union = typing.get_origin(expected) in (typing.Union, types.UnionType)
    return typing.get_args(expected) if is_union else (expected,)


def fits(value: Any, expected: Any) -> bool:
    """Whether a TOML value can stand for a field annotated with `expected`."""
    options, arguments = options_of(expected), typing.get_args(expected)
    if len(options) > 1:
        return any(fits(value, option) for option in options)
    if expected is Any:
        return True
    if is_choice(expected):
        return value in arguments
    if is_list(expected):
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if is_dict(expected):
        return isinstance(value, dict)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected) if isinstance(expected, type) else True


def check_scalars(where: str, call: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse another value where a signature asks for a boolean or a number: upstream takes any text for true.

    Args:
        where: the table of the arguments, in messages.
        call: what takes them: a function or a class.
        arguments: by name. Those of other types, or without one, are not judged.

    Raises:
        ConfigError: the first one of another kind.
    """
    try:
        hints = typing.get_type_hints(call.__init__ if isinstance(call, type) else call)  # type: ignore[misc]
    except (NameError, TypeError):  # names that only a type checker imports, or none at all
        return
    for name, value in arguments.items():
        expected = hints.get(name, Any)
        if {*options_of(expected)} <= {bool, int, float, type(None)} and not fits(value, expected):
            raise ConfigError(f"{where}.{name} = {value!r} should be {describe(expected)}.")


def describe(expected: Any) -> str:
    """A field's type in words."""
    options = [option for option in options_of(expected) if option is not type(None)]
    if len(options) == 1 and is_choice(options[0]):
        return "one of " + ", ".join(repr(option) for option in typing.get_args(options[0]))
    if is_table(expected) or is_dict(expected):
        return "a table"
    if expected is Any:
        return "text, or as TOML has it: 3, true, [1, 2], {}"
    if options == [bool]:
        return "true or false"
    return expected.__name__ if isinstance(expected, type) else str(expected).replace(" | None", "")


def from_words(words: list[str], expected: Any) -> Any:
    """What words of the command line say as a value of the type; several words are a list.

    Raises:
        ValueError: they are none.
    """
    options = options_of(expected)
    if expected is Any:
        return _of_any_type(words)
    if len(words) == 1 and type(None) in options and words[0].lower() in NONE:
        return None
    for option in sorted(options, key=is_list, reverse=True):  # what may be a list is never one text
        try:
            return _of_one_type(words, option)
        except ValueError:
            continue
    raise ValueError(" ".join(words))


def _of_one_type(words: list[str], expected: Any) -> Any:
    if is_list(expected):
        return _as_list(words, expected)
    (text,) = words  # another number of them is a ValueError
    if expected is bool:
        value: Any = text.lower() in TRUE if text.lower() in TRUE | FALSE else None
    elif is_choice(expected):
        value = next((choice for choice in typing.get_args(expected) if str(choice) == text), None)
    elif expected in (int, float, str):
        value = expected(text)
    else:
        value = as_toml(text)
    if value is None or not fits(value, expected):
        raise ValueError(text)
    return value


def _as_list(words: list[str], expected: Any) -> list[Any]:
    if len(words) == 1 and words[0].startswith("["):
        value = as_toml(words[0])
        if not fits(value, expected):
            raise ValueError(words[0])
        return value
    kind = typing.get_args(expected)[0]
    if is_list(kind):  # of lists, one a word
        return [_as_list([word], kind) for word in words]
    return [_of_one_type([item.strip()], kind) for word in words for item in word.split(",") if item.strip()]


def _of_any_type(words: list[str]) -> Any:
    """What stands under a free key: as TOML has it, true, false and none in any case, with commas a list, else text."""
    if len(words) > 1:
        return [_of_any_type([word]) for word in words]
    (text,) = words
    bare = re.sub(r"^\((.*)\)$", r"[\1]", text)  # as Python and torch write betas
    value = as_toml(bare)
    if value != bare and not isinstance(value, datetime.date | datetime.time):  # a date is part of a name
        return value
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in NONE:
        return None
    return [_of_any_type([item.strip()]) for item in text.split(",") if item.strip()] if "," in text else text


def as_toml(text: str) -> Any:
    """A value as a TOML file has it; what is none is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
