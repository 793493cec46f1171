"""Parameter groups from a model's parametrization and `no_decay` patterns. Plain torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch.nn as nn

from mosaic_photon.errors import ConfigError
from mosaic_photon.mup.table import ParameterScale
from mosaic_photon.names import clean_name


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The model's trainable parameters by the names that its author gave them, a shared one once."""
    return [(clean_name(name), p) for name, p in model.named_parameters() if p.requires_grad]


def scales_of(model: nn.Module) -> Mapping[str, ParameterScale] | None:
    """What the model asks for per parameter, or None where it asks for nothing."""
    parameter_scales: Callable[[], Mapping[str, ParameterScale]] | None = getattr(model, "parameter_scales", None)
    return None if parameter_scales is None else parameter_scales()


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    scales: Mapping[str, ParameterScale] | None,
    no_decay: Sequence[re.Pattern[str]],
    options: Mapping[str, Any],
    decay_includes_lr: bool,
) -> list[dict[str, Any]]:
    """Groups of parameters with equal hyper-parameters, in the order of their first parameter; none is empty.

    Args:
        named: parameters by clean name.
        scales: factors per name; None is 1 for all.
        no_decay: a parameter whose name one of these finds gets weight decay 0.
        options: the optimizer's lr, and weight_decay and eps where it has them.
        decay_includes_lr: the optimizer multiplies decay by lr, so a scale's weight_decay factor applies; a factor
            of 0 always does.

    Returns:
        Dicts with `params` and those options that a scale or a pattern changed, and always `lr`.

    Raises:
        ConfigError: decay is to be 0 for some parameters, but the optimizer has no weight_decay.
        KeyError: `scales` lacks a parameter.
    """
    groups: dict[tuple[tuple[str, float], ...], list[nn.Parameter]] = {}
    for name, p in named:
        scale = ParameterScale() if scales is None else scales[name]
        decay = scale.weight_decay if decay_includes_lr or scale.weight_decay == 0 else 1.0
        if any(pattern.search(name) for pattern in no_decay):
            decay = 0.0
            if "weight_decay" not in options:
                raise ConfigError("optimizer.no_decay: this optimizer has no weight decay; leave the patterns out.")
        factors = {"lr": scale.lr, "weight_decay": decay, "eps": scale.eps}
        changed = {key: factor for key, factor in factors.items() if key in options and (factor != 1 or key == "lr")}
        key = tuple((option, options[option] * factor) for option, factor in changed.items())
        groups.setdefault(key, []).append(p)
    return [{"params": params, **dict(key)} for key, params in groups.items()]


def compile_patterns(patterns: Sequence[str], names: Iterable[str] | None) -> list[re.Pattern[str]]:
    """Compile `optimizer.no_decay`; with names, each pattern must find one of them.

    Raises:
        ConfigError: a pattern is not a regular expression, or finds nothing.
    """
    compiled = []
    known = None if names is None else list(names)
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ConfigError(f"optimizer.no_decay: {pattern!r} is not a regular expression: {error}.") from None
        if known is not None and not any(compiled[-1].search(name) for name in known):
            raise ConfigError(
                f"optimizer.no_decay: {pattern!r} is found in no parameter's name, e.g. {', '.join(known[:3])}."
            )
    return compiled
