"""From `[callbacks.NAME]` tables to Composer callbacks, each mistake found before anything is built."""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from mosaic_photon.compat.composer_node_rank import set_node_rank
from mosaic_photon.compat.composer_signals import signal_handlers_kept

from mosaic_photon.callbacks.refused import refusal
from mosaic_photon.errors import ConfigError, nearest

if TYPE_CHECKING:
    from composer.core import Callback

ENTRY_POINTS = "llmfoundry_callbacks"
"""The group in which packages offer callbacks to llm-foundry's registry."""


def build_callbacks(tables: Mapping[str, Any]) -> "dict[str, Callback]":
    """Build the callbacks of a job's `callbacks` table, in its order.

    Args:
        tables: name -> arguments. A name is from llm-foundry's registry, or `module.path:Class`.

    Raises:
        ConfigError: unknown name, a callback that cannot work here, or arguments that it does not take.
    """
    if not tables:
        return {}
    set_node_rank()
    with signal_handlers_kept():
        return {name: _build(name, arguments) for name, arguments in tables.items()}


def _build(name: str, arguments: Any) -> "Callback":
    if not isinstance(arguments, Mapping):
        raise ConfigError(
            f"callbacks.{name} = {arguments!r}: must be a table of arguments, [callbacks.{name}], which may be empty."
        )
    cls = find_class(name)
    reason = refusal(cls)
    if reason is not None:
        raise ConfigError(f"callbacks.{name} is refused: {reason}.")
    _check_arguments(name, cls, arguments)
    try:
        return cls(**arguments)
    except Exception as error:  # whatever a callback's constructor raises is about the arguments in the job config
        raise ConfigError(
            f"callbacks.{name}: {cls.__name__}({_spelled(arguments)}) failed: {type(error).__name__}: {error}"
        ) from error


def find_class(name: str) -> "type[Callback]":
    """The callback class `name`: by path, by entry point (without importing llm-foundry), by llm-foundry's registry.

    Raises:
        ConfigError: there is none, or it is not a Composer callback.
    """
    if ":" in name:
        found = _by_path(name)
    else:
        offered = entry_points(group=ENTRY_POINTS, name=name)
        found = next(iter(offered)).load() if offered else _by_registry(name)
    from composer.core import Callback

    if not (isinstance(found, type) and issubclass(found, Callback)):
        raise ConfigError(f"callbacks.{name}: {found!r} is not a composer.Callback class.")
    return found


def _by_path(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"callbacks.{name!r}: cannot be imported as module.path:Class: {error}.") from error


def _by_registry(name: str) -> Any:
    try:
        import llmfoundry.callbacks  # noqa: F401  (fills the registries)
        from llmfoundry import registry
    except ModuleNotFoundError as error:
        known = [point.name for point in entry_points(group=ENTRY_POINTS)]
        raise ConfigError(
            f"callbacks.{name}: not among the callbacks installed here.{nearest(name, known)} Others come with"
            f" llm-foundry (pip install llm-foundry mosaicml), which does not import: {error}."
        ) from error
    for callbacks in (registry.callbacks, registry.callbacks_with_config):
        if name in callbacks:
            return callbacks.get(name)
    known = [*registry.callbacks.get_all(), *registry.callbacks_with_config.get_all()]
    raise ConfigError(
        f"callbacks.{name}: there is no such callback.{nearest(name, known)} A class of your own is named by"
        ' its path, [callbacks."module.path:Class"].'
    )


def _check_arguments(name: str, cls: type, arguments: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(cls).parameters.values())
    named = {
        one.name: one.default is one.empty
        for one in parameters
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }
    takes = f"{cls.__name__} takes {', '.join(named)}." if named else f"{cls.__name__} takes no arguments."
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        for unknown in (argument for argument in arguments if argument not in named):
            close = difflib.get_close_matches(unknown, named, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"callbacks.{name}.{unknown}: no such argument.{hint} {takes}")
    missing = [argument for argument, required in named.items() if required and argument not in arguments]
    if missing:
        raise ConfigError(f"callbacks.{name}: needs {' and '.join(missing)}. {takes}")


def _spelled(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
