"""Seeded mutations of job and data configs: what people mistype, misplace, negate, mistake for something else."""

from __future__ import annotations

import copy
import dataclasses
import random
import tomllib
import typing
from collections.abc import Iterator
from typing import Any

from mosaic_photon.job import data_config
from mosaic_photon.job.tables import MosaicJobConfig

Path_ = tuple[Any, ...]
"""Keys from the top of a config down to a value."""

NUMBERS = (
    -7,
    -1,
    0,
    1,
    2,
    3,
    5,
    127,
    65_537,
    2**31,
    2**63,
    0.0,
    0.5,
    -0.5,
    1.5,
    1e-30,
    1e30,
    float("inf"),
    float("nan"),
)
WORDS = (
    "",
    " ",
    "none",
    "null",
    "true",
    "auto",
    "all",
    "-1",
    "10",
    "1e3",
    "64k",
    "default",
    "ünï",
    "a b",
    "../..",
    "%s{}$",
)
OTHERS: tuple[Any, ...] = (True, False, [], {}, [1], ["a"], {"a": 1}, [[]], [None])
PATHS = (
    "/dev/null/deep",
    "/dev/null",
    "/dev/null/x",
    "/proc/self/mem",
    "relative/path",
    "~/home",
    "s3://",
    "file://x",
)
NEVER = {
    # Runs that take long or need what is not here; each has tests of its own.
    "compile.enable", "job.custom_config_module", "fault_tolerance.enable", "metrics.enable_wandb",
    # Sizes that a run may well have and that take a machine's memory or days.
    "training.steps", "n_layers", "num_workers", "remote", "epoch_size",
}  # fmt: skip


def mutated(job: dict[str, Any], data: dict[str, Any], seed: int) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Copies of both configs with one to three mutations, and what they were.

    Args:
        job: a job config's tables.
        data: a data config's tables.
        seed: the same seed makes the same mutations.
    """
    chance = random.Random(seed)
    configs = {"job": copy.deepcopy(job), "data": copy.deepcopy(data)}
    done = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        which = chance.choice(("job", "job", "data"))
        kind = chance.choice((_value, _value, _value, _drop, _misspell, _misplace, _add, _add, _replace_table))
        done.append(f"{which}: {kind(configs[which], which, chance)}")
    return configs["job"], configs["data"], "; ".join(done)


def _value(config: dict[str, Any], which: str, chance: random.Random) -> str:
    """Another value: wrong type, sign, size, word or path."""
    *where, key = _pick(config, chance)
    table = _at(config, where)
    table[key] = _other(table[key], key, chance)
    return f"{_named(where, key)} = {table[key]!r}"


def _drop(config: dict[str, Any], which: str, chance: random.Random) -> str:
    *where, key = _pick(config, chance, tables=True)
    del _at(config, where)[key]
    return f"without {_named(where, key)}"


def _misspell(config: dict[str, Any], which: str, chance: random.Random) -> str:
    *where, key = _pick(config, chance, tables=True)
    at = chance.randrange(len(key))
    wrong = chance.choice(
        (key[:at] + key[at + 1 :], key[:at] + "x" + key[at:], key.upper(), key.replace("_", "-") + "s")
    )
    table = _at(config, where)
    table[wrong] = table.pop(key)
    return f"{_named(where, key)} written {wrong!r}"


def _misplace(config: dict[str, Any], which: str, chance: random.Random) -> str:
    """A value in another table, or at the top."""
    *where, key = _pick(config, chance, tables=True)
    value = _at(config, where).pop(key)
    tables = [path for path, value in _walk(config) if isinstance(value, dict)] or [()]
    target = chance.choice(tables)
    _at(config, target)[key] = value
    return f"{_named(where, key)} in {_named(target)}"


def _add(config: dict[str, Any], which: str, chance: random.Random) -> str:
    """A field that there is, with a value that may be right or wrong."""
    if which == "job":
        table, field, kind = chance.choice(_job_fields())
        target = config.setdefault(table, {})
    else:
        loader = chance.choice([key for key in config if isinstance(config[key], dict)] or ["mosaic_dataloader"])
        target = config.setdefault(loader, {}).setdefault("dataset", {})
        table, field, kind = "dataset", chance.choice(sorted(data_config.FINETUNING_KEYS)), None
    if not isinstance(target, dict) or f"{table}.{field}" in NEVER or field in NEVER:
        return "nothing"
    kind = kind or _data_kind(field)
    target[field] = _of_kind(kind, chance) if kind is not None and chance.random() < 0.85 else _any(field, chance)
    return f"{table}.{field} = {target[field]!r}"


def _replace_table(config: dict[str, Any], which: str, chance: random.Random) -> str:
    tables = [path for path, value in _walk(config) if isinstance(value, dict)]
    if not tables:
        return "nothing"
    *where, key = chance.choice(tables)
    _at(config, where)[key] = chance.choice((1, "text", True, [], [{}], {}))
    return f"[{_named(where, key)}] = {_at(config, where)[key]!r}"


def _other(value: Any, key: str, chance: random.Random) -> Any:
    """Mostly of the same type: what is of another is soon found."""
    if key in NEVER or chance.random() < 0.2:
        return _any(key, chance)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        whole = isinstance(value, int)
        near = [-value, value + 1, value - 1, value * 10, value // 3 if whole else value / 3]
        return chance.choice([*near, *near, *(n for n in NUMBERS if not whole or isinstance(n, int))])
    if isinstance(value, str):
        at = chance.randrange(len(value) + 1)
        return chance.choice((*WORDS, *PATHS, value[:at] + "x" + value[at:], value.upper(), value[:at]))
    return _any(key, chance)


def _any(key: str, chance: random.Random) -> Any:
    numbers = NUMBERS[:7] if key in NEVER else NUMBERS
    return chance.choice((*numbers, *numbers, *WORDS, *OTHERS, *PATHS))


def _of_kind(kind: Any, chance: random.Random) -> Any:
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if typing.get_origin(kind) is typing.Literal:
        return chance.choice(options)
    if options and typing.get_origin(kind) not in (list, dict, tuple):
        kind = options[0]
    if kind is bool:
        return chance.choice((True, False))
    if kind in (int, float):
        return chance.choice([number for number in NUMBERS if isinstance(number, kind)])
    if kind is str:
        return chance.choice((*WORDS, *PATHS))
    return chance.choice(([], {}, ["a"], {"a": 1}))


def _data_kind(field: str) -> Any:
    """The type of a dataset's field, or the values that it has."""
    if field in data_config.CHOICES:
        return typing.Literal[data_config.CHOICES[field]]
    types = data_config.TYPES.get(field)
    return types[0] if types else None


def _job_fields() -> list[tuple[str, str, Any]]:
    return [
        (table.name, field.name, field.type)
        for table in dataclasses.fields(MosaicJobConfig)
        if dataclasses.is_dataclass(table.type)
        for field in dataclasses.fields(table.type)
    ]


def _walk(config: Any, above: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    for key, value in config.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from _walk(value, (*above, key))


def _pick(config: dict[str, Any], chance: random.Random, tables: bool = False) -> Path_:
    paths = [path for path, value in _walk(config) if tables or not isinstance(value, dict)]
    if not paths:
        config["nothing"] = 0
        return ("nothing",)
    return chance.choice(paths)


def _at(config: Any, path: Any) -> Any:
    for key in path:
        config = config[key]
    return config


def _named(path: Any, *keys: Any) -> str:
    return ".".join(map(str, (*path, *keys))) or "the top"


def to_toml(tables: dict[str, Any]) -> str:
    """TOML text of tables; what TOML cannot say (None) is left out, as a user would."""
    text = "\n".join(f"{_key(name)} = {_toml(value)}" for name, value in tables.items() if value is not None)
    tomllib.loads(text)
    return text


def _key(name: Any) -> str:
    return _toml(str(name))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value if item is not None) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
