"""From a job config, a data config and command-line flags to one checked MosaicJobConfig."""

import codecs
import dataclasses
import io
import os
import sys
import tomllib
import types
import typing
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import Any

from mosaic_photon.compat import tyro_bool_flags
from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.job.data_config import load_data_config
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.config import ConfigManager


def load_job(config_path: str, data_path: str, titan_flags: list[str]) -> MosaicJobConfig:
    """Read both files and apply TorchTitan's flags, which win over the job config.

    Raises:
        ConfigError: a file that is missing or malformed, an unknown table, field or flag, a value of the wrong type.
        SystemExit: after `--help`.
    """
    if any(flag.startswith(("--job.config_file", "--job.config-file")) for flag in titan_flags):
        raise ConfigError("--job.config_file: give the job config as --config JOB.toml before `--`.")
    for flag in titan_flags:
        if flag.startswith(("--mosaic.config", "--mosaic.dataloader", "--mosaic.eval")):
            raise ConfigError(f"{flag}: comes from the data config, --mosaic-config DATA before `--`.")
    values, manager = read_toml(config_path), ConfigManager(MosaicJobConfig)
    try:
        config_cls = manager._maybe_add_custom_config(titan_flags, values)  # [job] custom_config_module
    except ImportError as error:
        raise ConfigError(f"job.custom_config_module: {error}.") from error
    check_tables(values, config_cls, config_path)
    for name in ("config", "dataloader", "eval_dataloader"):
        if name in values.get("mosaic", {}):
            raise ConfigError(f"{config_path}: mosaic.{name} comes from the data config, --mosaic-config.")
    flags = tyro_bool_flags.normalise(titan_flags, config_cls)
    job_config = parse_flags(manager, [f"--job.config_file={config_path}", *flags])
    if job_config.model.hf_assets_path and not os.path.isdir(job_config.model.hf_assets_path):
        raise ConfigError(
            f"model.hf_assets_path in {config_path}: there is no folder {job_config.model.hf_assets_path!r}. "
            "It must hold tokenizer.json."
        )
    data = load_data_config(data_path)
    job_config.mosaic.config = data_path
    job_config.mosaic.dataloader = data.train
    job_config.mosaic.eval_dataloader = data.eval
    return job_config


def parse_flags(manager: ConfigManager, flags: list[str]) -> MosaicJobConfig:
    """TorchTitan's parsing, with what tyro says of a wrong flag as a ConfigError; help is shown by one rank."""
    sys.argv[0] = "python -m mosaic_photon.train_with_mosaic --"  # tyro names it
    said = io.StringIO()
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(said))
        if os.environ.get("RANK", "0") != "0" and {"--help", "-h"} & set(flags):
            stack.enter_context(redirect_stdout(io.StringIO()))
        try:
            return manager.parse_args(flags)
        except AssertionError as error:  # what TorchTitan's own config classes check
            raise ConfigError(f"the job config is refused by TorchTitan: {error}.") from error
        except SystemExit as exit_:
            if not exit_.code:
                raise
            raise ConfigError(f"the flags after `--`:\n{said.getvalue().rstrip()}") from None


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None


def check_tables(values: dict[str, Any], config_cls: type, path: str, prefix: str = "") -> None:
    """Refuse unknown tables and fields, and values of the wrong type, which TorchTitan lets through."""
    fields = {field.name: field for field in dataclasses.fields(config_cls)}
    for name, value in values.items():
        where = f"{prefix}{name}"
        if name not in fields:
            kind = "table" if not prefix else "field"
            raise ConfigError(f"{path}: unknown {kind} {where!r}.{nearest(name, fields)}")
        expected = fields[name].type
        if isinstance(expected, type) and dataclasses.is_dataclass(expected):
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: {where} is a table, [{where}], not {value!r}.")
            check_tables(value, expected, path, f"{where}.")
        elif not fits(value, expected):
            raise ConfigError(f"{path}: {where} = {value!r} should be {describe(expected)}.")


def fits(value: Any, expected: Any) -> bool:
    """Whether a TOML value can stand for a field annotated with `expected`."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if origin is dict or expected is dict:
        return isinstance(value, dict)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected) if isinstance(expected, type) else True


def describe(expected: Any) -> str:
    """A field's type in words."""
    if typing.get_origin(expected) is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(expected))
    if dataclasses.is_dataclass(expected) or dict in (expected, typing.get_origin(expected)):
        return "a table"
    return expected.__name__ if isinstance(expected, type) else str(expected).replace(" | None", "")
