"""What a parametrization asks of the optimizer, per parameter."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ParameterScale:
    """Factors on the job's hyper-parameters for one parameter; all 1 is the standard parametrization.

    A model offers them as `parameter_scales() -> dict[str, ParameterScale]`, keyed by the parameter's name.
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    """Meant for a decay that is multiplied by the learning rate; others ignore it unless it is 0."""
    eps: float = 1.0
