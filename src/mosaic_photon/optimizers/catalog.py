"""An optimizer's class and arguments from the job's `[optimizer]` table."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mosaic_photon.errors import ConfigError, nearest, nearest_if_close
from mosaic_photon.foundry import foundry_module
from mosaic_photon.job.kinds import check_scalars
from mosaic_photon.optimizers.qhadopt import ADOPT, QHADOPT
from mosaic_photon.optimizers.ranges import check_range

if TYPE_CHECKING:
    from mosaic_photon.job.facts import Facts
    from mosaic_photon.job.tables import MosaicJobConfig
    from mosaic_photon.job.tables import Optimizer as OptimizerConfig

TITAN = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
OURS = {"QHADOPT": QHADOPT, "ADOPT": ADOPT, "qhadopt": QHADOPT, "adopt": ADOPT}

TITAN_DEFAULTS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
"""TorchTitan's own defaults for Adam and AdamW, which are not torch's."""
DEFAULT_LR = 8e-4
"""TorchTitan's, for every optimizer that has a learning rate."""

REFUSED = dict.fromkeys(
    ("adalr_lion", "clip_lion"),
    "it keeps Python objects for each parameter, which a checkpoint of TorchTitan cannot hold, and adds norms up over "
    "all ranks, whether they hold shards or copies; decoupled_lionw is the plain form",
)
"""Names of llm-foundry's registry -> why they cannot train here."""


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
        ConfigError: no such optimizer, one that cannot train here, a field that it does not take or that is set twice,
            or a number that no run can use.
    """
    cls = find(config.name)
    accepted = accepted_arguments(cls)
    defaults: dict[str, Any] = {"lr": DEFAULT_LR} if "lr" in accepted else {}
    defaults |= TITAN_DEFAULTS if config.name in TITAN else {}
    fields = _fields(config, defaults.get("betas", accepted.get("betas", (0.0, 0.0))))
    implementation = {"foreach", "fused"}
    for key in config.kwargs:
        if key in fields or (config.implementation is not None and key in implementation):
            raise ConfigError(f"optimizer.kwargs.{key} is set twice, by optimizer.{_field(key, config)} too: drop one.")
    if config.name in TITAN and not implementation & {*fields, *config.kwargs}:
        defaults["fused"] = True
    kwargs = {**defaults, **fields, **config.kwargs}
    for key, value in kwargs.items():
        spelled = f"kwargs.{key}" if key in config.kwargs else _field(key, config)
        if key not in accepted:
            raise ConfigError(
                f"optimizer.{spelled}: {config.name} does not take it. It takes "
                f"{', '.join(sorted(accepted))}.{nearest_if_close(key, accepted)}"
            )
        check_range(f"optimizer.{spelled}", key, value)
    check_scalars("optimizer.kwargs", cls, config.kwargs)
    return Choice(config.name, cls, kwargs)


def check_optimizer(job: MosaicJobConfig, facts: Facts) -> None:
    """The job's optimizer must exist and take what the job sets."""
    choose(job.optimizer)


def find(name: str) -> type[torch.optim.Optimizer]:
    """The optimizer class of this name: TorchTitan's, ours or one in llm-foundry's registry.

    Raises:
        ConfigError: no such optimizer, or one that cannot train here.
    """
    if name in REFUSED:
        raise ConfigError(f"optimizer.name = {name!r} is refused: {REFUSED[name]}.")
    if name in TITAN or name in OURS:
        return TITAN.get(name) or OURS[name]
    known = {*TITAN, "QHADOPT", "ADOPT"}
    foundry_module(  # registers its optimizers
        "llmfoundry.optim", f"optimizer.name: {name!r} is not of this package.{nearest(name, known)} Any other name"
    )
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


def _fields(config: OptimizerConfig, betas: tuple[float, float]) -> dict[str, Any]:
    """Fields of [optimizer] that the user set, as constructor arguments; `betas` stands in for the one not set."""
    names = ("lr", "eps", "weight_decay", "v1", "decouple")
    fields = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if config.beta1 is not None or config.beta2 is not None:
        given = (config.beta1, config.beta2)
        fields["betas"] = tuple(b if b is not None else d for b, d in zip(given, betas, strict=True))
    if config.implementation == "for-loop":
        fields["foreach"] = False
    elif config.implementation is not None:
        fields[config.implementation] = True
    return fields


def _field(key: str, config: OptimizerConfig) -> str:
    """The field of [optimizer] that gives a constructor argument."""
    if key == "betas":
        return "beta1" if config.beta1 is not None else "beta2"
    return "implementation" if key in ("foreach", "fused") else key
