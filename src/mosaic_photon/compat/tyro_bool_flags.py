"""tyro refuses `--metrics.enable_tensorboard=true`: its boolean flags are `--x.flag` and `--x.no-flag`.

Booleans that may be None it spells `--x.flag=True`.

This is tyro's design, not a defect of it (no upstream issue). Delete when TorchTitan's ConfigManager takes values for
boolean flags.
"""

import dataclasses
import typing

TRUE, FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


def boolean_flags(config_cls: type, prefix: str = "") -> dict[str, bool]:
    """Dotted names, with underscores, of the boolean fields of a nested config dataclass -> whether it may be None."""
    names: dict[str, bool] = {}
    for field in dataclasses.fields(config_cls):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            names |= boolean_flags(field.type, f"{prefix}{field.name}.")
        elif field.type is bool or bool in typing.get_args(field.type):
            names[prefix + field.name] = field.type is not bool
    return names


def normalise(arguments: list[str], config_cls: type) -> list[str]:
    """`--a.b=true` -> `--a.b`, `--a.b=false` -> `--a.no-b`, also as two words; all else is passed on unchanged."""
    flags = boolean_flags(config_cls)
    result: list[str] = []
    words = iter(range(len(arguments)))
    for index in words:
        name, equals, value = arguments[index].partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if key not in flags or not name.startswith("--"):
            result.append(arguments[index])
            continue
        following = arguments[index + 1].lower() if not equals and index + 1 < len(arguments) else ""
        if following in TRUE | FALSE:
            value, equals = following, "="
            next(words)
        if flags[key] and value.lower() in TRUE | FALSE:
            result.append(f"{name}={value.lower() in TRUE}")
        elif not equals or value.lower() in TRUE:
            result.append(name)
        elif value.lower() in FALSE:
            table, _, field = name.rpartition(".")
            result.append(f"{table}.no-{field.replace('_', '-')}")
        else:
            result.append(arguments[index])
    return result
