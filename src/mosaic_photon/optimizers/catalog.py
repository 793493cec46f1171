"""An optimizer's class and arguments from the job's `[optimizer]` table."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.optimizers.qhadopt import ADOPT, QHADOPT

if TYPE_CHECKING:
    from mosaic_photon.job_config import Optimizer as OptimizerConfig

TITAN = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
OURS = {"QHADOPT": QHADOPT, "ADOPT": ADOPT, "qhadopt": QHADOPT, "adopt": ADOPT}

TITAN_DEFAULTS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
"""TorchTitan's own defaults for Adam and AdamW, which are not torch's."""


@dataclass(frozen=True)
class Choice:
    """The optimizer that a job asks for."""

    name: str
    cls: type[torch.optim.Optimizer]
    kwargs: dict[str, Any]
    """Constructor arguments besides the parameters."""

    @property
    def options(self) -> dict[str, Any]:
        """The values of lr, weight_decay and eps, as far as the optimizer has them: what parameter groups scale."""
        accepted = accepted_arguments(self.cls)
        values = {key: self.kwargs.get(key, accepted.get(key)) for key in ("lr", "weight_decay", "eps")}
        return {key: value for key, value in values.items() if isinstance(value, int | float)}

    @property
    def decay_includes_lr(self) -> bool:
        """Whether the optimizer multiplies decoupled weight decay by the learning rate."""
        if isinstance(self.cls, type) and issubclass(self.cls, QHADOPT):
            return self.cls.decay_includes_lr and bool(self.kwargs.get("decouple"))
        return self.cls is torch.optim.AdamW or bool(self.kwargs.get("decoupled_weight_decay"))


def choose(config: OptimizerConfig) -> Choice:
    """Find the class and gather what the job set for it.

    Raises:
        ConfigError: no such optimizer, or a field is set that it does not take.
    """
    cls = find(config.name)
    defaults = dict(TITAN_DEFAULTS) if config.name in TITAN else {}
    kwargs = {**defaults, **_fields(config, cls, defaults), **config.kwargs}
    accepted = accepted_arguments(cls)
    twice = set(config.kwargs) & set(_set_fields(config))
    if twice:
        key = min(twice)
        raise ConfigError(f"optimizer.{key} is set twice, in [optimizer] and in [optimizer.kwargs]: drop one.")
    for key in kwargs:
        if key not in accepted:
            raise ConfigError(
                f"optimizer.{_spelling(key, config)}: {config.name} does not take it. It takes "
                f"{', '.join(sorted(accepted))}.{nearest_if_close(key, accepted)}"
            )
    return Choice(config.name, cls, kwargs)


def find(name: str) -> type[torch.optim.Optimizer]:
    """The optimizer class of this name: TorchTitan's, ours or one in llm-foundry's registry.

    Raises:
        ConfigError: no such optimizer.
    """
    if name in TITAN or name in OURS:
        return TITAN.get(name) or OURS[name]
    known = {*TITAN, "QHADOPT", "ADOPT"}
    if importlib.util.find_spec("llmfoundry") is None:
        raise ConfigError(
            f"optimizer.name: there is no optimizer {name!r}.{nearest(name, known)} Names from llm-foundry's registry "
            "need llm-foundry (pip install llm-foundry mosaicml)."
        )
    import llmfoundry.optim  # noqa: F401  (registers its optimizers)
    from llmfoundry import registry

    registered = registry.optimizers.get_all()
    if name not in registered:
        raise ConfigError(
            f"optimizer.name: there is no optimizer {name!r}.{nearest(name, known | (set(registered) - set(OURS)))}"
        )
    return registered[name]


def accepted_arguments(cls: type) -> dict[str, Any]:
    """Constructor arguments besides the parameters, with their defaults."""
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def nearest_if_close(given: str, known: Any) -> str:
    """' Did you mean X?' where a known name is close, else nothing: the list has been given."""
    hint = nearest(given, known)
    return hint if hint.startswith(" Did") else ""


def _set_fields(config: OptimizerConfig) -> dict[str, Any]:
    """Fields of [optimizer] that the user set and that are named as constructor arguments are."""
    names = ("lr", "eps", "weight_decay", "v1", "decouple")
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _fields(config: OptimizerConfig, cls: type, defaults: dict[str, Any]) -> dict[str, Any]:
    """The [optimizer] table's own fields as constructor arguments."""
    fields = _set_fields(config)
    accepted = accepted_arguments(cls)
    if config.beta1 is not None or config.beta2 is not None:
        default = defaults.get("betas", accepted.get("betas", (0.0, 0.0)))
        given = (config.beta1, config.beta2)
        fields["betas"] = tuple(b if b is not None else d for b, d in zip(given, default, strict=True))
    implementation = config.implementation
    if implementation is None and config.name in TITAN:
        implementation = "fused"
    if implementation == "for-loop":
        fields |= {"foreach": False}
    elif implementation is not None:
        fields[implementation] = True
    return fields


def _spelling(key: str, config: OptimizerConfig) -> str:
    """The key as the user wrote it."""
    if key in config.kwargs:
        return f"kwargs.{key}"
    if key == "betas":
        return "beta1" if config.beta1 is not None else "beta2"
    return "implementation" if key in ("foreach", "fused") else key
