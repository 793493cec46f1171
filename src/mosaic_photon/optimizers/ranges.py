"""Numbers that an optimizer can run with; upstream's optimizers take some that they cannot."""

import math
from typing import Any

from torch import Tensor

from mosaic_photon.errors import ConfigError


def check_range(where: str, key: str, value: Any) -> None:
    """Raise ConfigError for a number that no run can use.

    Args:
        where: opens the message: what sets the argument.
        key: the constructor argument. Those that are not known here may be anything.
        value: its value; for lr, eps and weight_decay a tensor of one element too.
    """
    if key in ("lr", "eps", "weight_decay"):
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ConfigError(f"{where}: a tensor {key} must have one element, not shape {tuple(value.shape)}.")
        if not (_is_number(value) and 0.0 <= float(value) < math.inf):
            raise ConfigError(f"{where} = {value!r}: a finite number >= 0 is right.")
    if key == "betas":
        pair = isinstance(value, list | tuple) and len(value) == 2
        if not (pair and all(_is_number(beta) and 0.0 <= beta < 1.0 for beta in value)):
            raise ConfigError(f"{where}: betas = {value!r}: two numbers in [0, 1) are right.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Tensor) and not isinstance(value, bool)
