"""JSON Schemas of a job and of a data config, for editors: `python -m mosaic_photon.job.schema` writes them anew.

They say what `tables.py` and `data_config.py` say. What those refuse beyond types and names, a schema cannot.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mosaic_photon.files import write_whole
from mosaic_photon.job import data_config as data
from mosaic_photon.job.eval_sets import KEYS, LABEL, SEVERAL
from mosaic_photon.job.help import sentences_of
from mosaic_photon.job.kinds import is_choice, is_dict, is_list, is_table, options_of, types_of
from mosaic_photon.job.stages import KEYS as STAGE_KEYS
from mosaic_photon.job.stages import STAGES
from mosaic_photon.job.tables import FROM_DATA, MosaicJobConfig

SCHEMAS = Path(__file__).parent.parent / "schemas"
DRAFT = "http://json-schema.org/draft-07/schema#"
FROM_ELSEWHERE = {"job.config_file", *(f"mosaic.{name}" for name in FROM_DATA)}
"""Fields that the launcher fills, and a file may not have."""
NAMES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def job_schema() -> dict[str, Any]:
    """Of a job config."""
    schema = {"$schema": DRAFT, "title": "A job of mosaic-photon", **_table(MosaicJobConfig, MosaicJobConfig(), "")}
    schema["properties"]["callbacks"]["additionalProperties"] = {"type": "object"}
    return schema


def data_schema() -> dict[str, Any]:
    """Of a data config: llm-foundry's loaders under their names here or there."""
    streams = {"type": "object", "additionalProperties": _keys(data.STREAM_KEYS)}
    dataset = _keys(data.TEXT_KEYS | data.FINETUNING_KEYS, streams=streams)
    name = {"enum": ["text", "finetuning"]}
    loader = {**_keys(data.LOADER_KEYS, dataset=dataset, name=name), "required": ["name", "dataset"]}
    labelled = {**loader, "properties": {**loader["properties"], "label": {"type": ["string", "integer"]}}}
    train, one = ({"$ref": f"#/definitions/{kind}_loader"} for kind in ("train", "eval"))
    several = {"type": "array", "items": {"allOf": [one, {"required": ["label"]}]}, "minItems": 2}
    evaluation = {"anyOf": [one, several, {"type": "array", "items": one, "maxItems": 1}]}
    named = {"type": "object", "additionalProperties": train, "propertyNames": {"pattern": f"^{LABEL.pattern}$"}}
    kinds = {**dict.fromkeys(data.LOADERS, train), **dict.fromkeys(KEYS, evaluation), SEVERAL: named}
    return {
        "$schema": DRAFT,
        "title": "A data config of mosaic-photon",
        "type": "object",
        "additionalProperties": False,
        "properties": {**kinds, STAGES: {"type": "array", "minItems": 1, "items": _stage()}},
        "definitions": {"train_loader": loader, "eval_loader": labelled},
    }


def _stage() -> dict[str, Any]:
    """One of a data config's stages."""
    of_streams = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}, "minProperties": 1}
    kinds = {"duration": {"type": "string"}, "ramp": {"type": "boolean"}}
    properties = {key: {"description": text, **kinds.get(key, of_streams)} for key, text in STAGE_KEYS.items()}
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": ["proportion"]}


def _table(cls: type, defaults: Any, prefix: str) -> dict[str, Any]:
    """A table with fields of its own, each with its sentence and its default."""
    sentences, kinds = sentences_of(cls), types_of(cls)
    properties = {}
    for field in dataclasses.fields(cls):
        name, expected, default = f"{prefix}{field.name}", kinds[field.name], getattr(defaults, field.name)
        if name in FROM_ELSEWHERE:
            continue
        if is_table(expected):
            properties[field.name] = _table(expected, default, f"{name}.")
            continue
        properties[field.name] = {"description": sentences[field.name], **_value(expected)}
        if default is not None and not is_dict(expected):
            properties[field.name]["default"] = default
    about = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    return {"description": about, "type": "object", "additionalProperties": False, "properties": properties}


def _value(expected: Any) -> dict[str, Any]:
    """What a value of a field's type is; TOML has no null, so that None is a field left out."""
    options = [option for option in options_of(expected) if option is not type(None)]
    if len(options) > 1:
        return {"anyOf": [_value(option) for option in options]}
    (option,) = options
    if option is Any:
        return {}
    if is_choice(option):
        return {"enum": list(typing.get_args(option))}
    if is_list(option):
        return {"type": "array", "items": _value(typing.get_args(option)[0])}
    return {"type": "object" if is_dict(option) else NAMES[option]}


def _keys(known: Iterable[str], **tables: dict[str, Any]) -> dict[str, Any]:
    """A table of a data config, with these keys."""
    properties = {key: tables.get(key) or _data_value(key) for key in sorted(known)}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _data_value(key: str) -> dict[str, Any]:
    if key in data.CHOICES:
        return {"enum": list(data.CHOICES[key])}
    kinds = data.TYPES.get(key)
    if kinds is None:
        return {}
    names = ["object" if kind is dict else NAMES[kind] for kind in kinds if not (kind is int and float in kinds)]
    bounds = {"minimum": data.AT_LEAST.get(key), "maximum": data.AT_MOST.get(key)}
    return {
        "type": names[0] if len(names) == 1 else names,
        **{bound: value for bound, value in bounds.items() if value is not None},
    }


def shipped() -> dict[Path, bytes]:
    """The files that come with the package, and what is to be in them."""
    schemas = {"job": job_schema(), "data": data_schema()}
    return {SCHEMAS / f"{name}.json": f"{json.dumps(schema, indent=1)}\n".encode() for name, schema in schemas.items()}


if __name__ == "__main__":
    for path, content in shipped().items():
        write_whole(path, content)
