"""From a job config, a data config and command-line flags to one checked MosaicJobConfig."""

import codecs
import dataclasses
import os
import tomllib
from typing import Any

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.job.algorithms import instead_of
from mosaic_photon.job.data_config import load_data_config
from mosaic_photon.job.flags import apply_flags
from mosaic_photon.job.help import help_text
from mosaic_photon.job.kinds import describe, fits, is_table, types_of
from mosaic_photon.job.source import Source, opened
from mosaic_photon.job.tables import FROM_DATA, MosaicJobConfig
from mosaic_photon.names import import_named


def load_job(job_source: Source, data_source: Source, flags: list[str]) -> MosaicJobConfig:
    """Read both configs and apply flags, which win over the job config.

    Raises:
        ConfigError: a file that is missing or malformed, an unknown table, field or flag, a value of the wrong type.
        SystemExit: after `--help`.
    """
    for flag in flags:
        if flag.startswith(("--job.config_file", "--job.config-file")):
            raise ConfigError("--job.config_file: give the job config as --config JOB.toml before `--`.")
        if flag.replace("-", "_").startswith(tuple(f"__mosaic.{name}" for name in FROM_DATA)):
            raise ConfigError(f"{flag}: comes from the data config, --mosaic-config DATA before `--`.")
    job = read_job(job_source, flags)
    if job.model.hf_assets_path and not os.path.isdir(job.model.hf_assets_path):
        raise ConfigError(
            f"model.hf_assets_path in {job.job.config_file}: there is no folder {job.model.hf_assets_path!r}. It must "
            "hold tokenizer.json."
        )
    data = load_data_config(data_source)
    job.mosaic.config = data.path
    job.mosaic.dataloader = data.train
    job.mosaic.eval_dataloaders = data.eval
    job.mosaic.stages = data.stages
    return job


def read_job(source: Source, flags: list[str]) -> MosaicJobConfig:
    """The job config with flags applied, without its data.

    Raises:
        ConfigError, SystemExit: as `load_job`.
    """
    wants_help = not {"--help", "-h"}.isdisjoint(flags)
    path, values = opened(source, "job config")
    if values is None:
        values = {} if wants_help and not os.path.isfile(path) else read_toml(path)
    job_class = _job_class(values, flags)
    if wants_help:
        if os.environ.get("RANK", "0") == "0":
            print(help_text(job_class))  # noqa: T201
        raise SystemExit(0)
    check_tables(values, job_class, path)
    for name in FROM_DATA:
        if name in values.get("mosaic", {}):
            raise ConfigError(f"{path}: mosaic.{name} comes from the data config, --mosaic-config.")
    apply_flags(values, flags, job_class)
    job: MosaicJobConfig = _built(values, job_class)
    job.job.config_file = path
    job.model.hf_assets_path = job.model.tokenizer_path or job.model.hf_assets_path
    return job


def _job_class(values: dict[str, Any], flags: list[str]) -> type:
    """The job's dataclass, with the tables and fields of `[job] custom_config_module` if there is one."""
    table = values.get("job", {})
    given = {"job": {"custom_config_module": table.get("custom_config_module")}} if isinstance(table, dict) else {}
    for number, word in enumerate(flags):
        if word.partition("=")[0].replace("-", "_") == "__job.custom_config_module":
            apply_flags(given, flags[number : number + 1 + ("=" not in word)], MosaicJobConfig)
    module = given.get("job", {}).get("custom_config_module")
    if not module or not isinstance(module, str):
        return MosaicJobConfig
    custom = import_named(module, "job.custom_config_module")
    if not is_table(getattr(custom, "JobConfig", None)):
        raise ConfigError(f"job.custom_config_module = {module!r} has no dataclass JobConfig.")
    return merged(MosaicJobConfig, custom.JobConfig)


def merged(base: type, custom: type) -> type:
    """A dataclass with the fields of both, as TorchTitan merges them: tables field by field; else `custom` wins."""
    ours, theirs = types_of(base), types_of(custom)
    fields = {field.name: field for cls in (base, custom) for field in dataclasses.fields(cls)}
    made: list[tuple[str, Any, Any]] = []
    for name, field in fields.items():
        expected = theirs.get(name, ours.get(name))
        if is_table(ours.get(name)) and is_table(theirs.get(name)):
            expected = merged(ours[name], theirs[name])
            field = dataclasses.field(default_factory=expected)
        made.append((name, expected, field))
    return dataclasses.make_dataclass(f"Merged{base.__name__}", made, bases=(base,))


def _built(values: dict[str, Any], table: type) -> Any:
    """The dataclass with these values, and with its defaults for what they lack."""
    kinds = types_of(table)
    given = {name: _built(value, kinds[name]) if is_table(kinds[name]) else value for name, value in values.items()}
    missing = {name: _built({}, kind) for name, kind in kinds.items() if is_table(kind) and name not in given}
    try:
        return table(**given, **missing)
    except (AssertionError, TypeError, ValueError) as error:  # what a custom config's dataclasses check
        raise ConfigError(f"the job config is refused by {table.__name__}: {error}.") from error


def read_toml(path: str) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: it cannot be read or is malformed.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        if content.startswith(codecs.BOM_UTF8):
            raise ConfigError(
                f"{path}: begins with a byte order mark, which is not TOML: save it as UTF-8 without one."
            )
        return tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the job config ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None


def check_tables(values: dict[str, Any], config_cls: type, path: str, prefix: str = "") -> None:
    """Refuse unknown tables and fields, and values of the wrong type."""
    fields = types_of(config_cls)
    for name, value in values.items():
        where = f"{prefix}{name}"
        if name not in fields:
            if where == "algorithms":
                raise ConfigError(f"{path}: {instead_of(value)}")
            kind = "table" if not prefix else "field"
            raise ConfigError(f"{path}: unknown {kind} {where!r}.{nearest(name, fields)}")
        expected = fields[name]
        if is_table(expected):
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: {where} is a table, [{where}], not {value!r}.")
            check_tables(value, expected, path, f"{where}.")
        elif not fits(value, expected):
            raise ConfigError(f"{path}: {where} = {value!r} should be {describe(expected)}.")
