"""From `[callbacks.NAME]` tables to Composer callbacks, each mistake found before anything is built."""

import importlib
import inspect
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from mosaic_photon.callbacks.refused import qualified, refusal, refusal_in
from mosaic_photon.compat.composer_node_rank import set_node_rank
from mosaic_photon.compat.composer_signals import signal_handlers_kept
from mosaic_photon.errors import ConfigError, ask_upstream, nearest, nearest_if_close
from mosaic_photon.foundry import foundry_module
from mosaic_photon.job.kinds import check_scalars
from mosaic_photon.names import import_named

if TYPE_CHECKING:
    from composer.core import Callback

    from mosaic_photon.job.facts import Facts
    from mosaic_photon.job.tables import MosaicJobConfig

ENTRY_POINTS = "llmfoundry_callbacks"
"""The group in which packages offer callbacks to llm-foundry's registry."""

MENDED = {
    "composer.ActivationMonitor": "mosaic_photon.callbacks.activation_monitor",
    "composer.EarlyStopper": "mosaic_photon.compat.composer_early_stopper",
    "composer.LRMonitor": "mosaic_photon.callbacks.group_monitors",
    "composer.OptimizerMonitor": "mosaic_photon.callbacks.optimizer_monitor",
    "llmfoundry.FDiffMetrics": "mosaic_photon.compat.foundry_fdiff_metrics",
    "llmfoundry.GlobalLRScaling": "mosaic_photon.compat.foundry_lr_scaling",
    "llmfoundry.KillLossSpike": "mosaic_photon.compat.foundry_kill_loss_spike",
    "llmfoundry.LayerFreezing": "mosaic_photon.compat.foundry_layer_freezing",
}
"""Package and class -> module of the class of the same name that jobs get in its place."""


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
        _need_composer(tables)
        return {name: _build(name, arguments) for name, arguments in tables.items()}


def check_callbacks(job: "MosaicJobConfig", facts: "Facts") -> None:
    """Each callback must exist, take its arguments and be able to work in this job; none is built."""
    if job.callbacks:
        set_node_rank()
        with signal_handlers_kept():
            _need_composer(job.callbacks)
            for name, arguments in job.callbacks.items():
                cls = _class_for(name, arguments)
                if reason := refusal_in(job, facts, cls, arguments):
                    raise ConfigError(f"callbacks.{name} is refused: {reason.rstrip('.')}.")


def _need_composer(tables: Mapping[str, Any]) -> None:
    foundry_module("composer.core", f"[callbacks]: {', '.join(tables)}: a callback")


def _build(name: str, arguments: Any) -> "Callback":
    cls = _class_for(name, arguments)
    message = f"callbacks.{name}: {cls.__name__}({_spelled(arguments)}) failed"
    return ask_upstream(message, (Exception,), cls, **arguments)  # what a constructor raises is about its arguments


def _class_for(name: str, arguments: Any) -> "type[Callback]":
    """The class, checked to take these arguments. Raises ConfigError as `build_callbacks`."""
    if not isinstance(arguments, Mapping):
        raise ConfigError(
            f"callbacks.{name} = {arguments!r}: must be a table of arguments, [callbacks.{name}], which may be empty."
        )
    cls = find_class(name)
    reason = refusal(cls)
    if reason is not None:
        raise ConfigError(f"callbacks.{name} is refused: {reason}.")
    _check_arguments(name, cls, arguments)
    return cls


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
    mended = MENDED.get(qualified(found))
    return getattr(importlib.import_module(mended), found.__name__) if mended else found


def _by_path(name: str) -> Any:
    module, _, attribute = name.partition(":")
    where = f"callbacks.{name!r}: cannot be imported as module.path:Class"
    found = import_named(module, where)
    if not hasattr(found, attribute):
        raise ConfigError(f"{where}: {module} has no {attribute!r}.{nearest_if_close(attribute, dir(found))}")
    return getattr(found, attribute)


def _by_registry(name: str) -> Any:
    known = [point.name for point in entry_points(group=ENTRY_POINTS)]
    not_ours = f"callbacks.{name}: not of this package.{nearest(name, known)} Any other name"
    foundry_module("llmfoundry.callbacks", not_ours)  # fills the registries
    from llmfoundry import registry

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
            raise ConfigError(
                f"callbacks.{name}.{unknown}: no such argument.{nearest_if_close(unknown, named)} {takes}"
            )
    missing = [argument for argument, required in named.items() if required and argument not in arguments]
    if missing:
        raise ConfigError(f"callbacks.{name}: needs {' and '.join(missing)}. {takes}")
    check_scalars(f"callbacks.{name}", cls, arguments)


def _spelled(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
