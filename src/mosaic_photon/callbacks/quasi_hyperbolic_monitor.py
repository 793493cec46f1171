"""QuasiHyperbolicParameterMonitor: the optimizer's momentum weights and decay rates, every batch."""

from composer.core import Callback, State
from composer.loggers import Logger

VALUES = ("v1", "v2", "nu", "nus", "beta", "betas", "momentum")
"""Keys of a parameter group that hold quasi-hyperbolic weights or decay rates: QHADOPT's, Adam's, qhoptim's."""


class QuasiHyperbolicParameterMonitor(Callback):
    """Logs each parameter group's v values and betas at the end of every batch.

    Keys are `quasi_hyperbolic/OPTIMIZER/groupI/v1` and, for pairs, `quasi_hyperbolic/OPTIMIZER/groupI/beta1`, `beta2`.
    With several optimizers (pipeline stages) the groups are counted through.
    """

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the values that the step was made with."""
        groups = [
            (type(optimizer).__name__, group) for optimizer in state.optimizers for group in optimizer.param_groups
        ]
        metrics: dict[str, float] = {}
        for index, (optimizer, group) in enumerate(groups):
            for key in VALUES:
                for name, value in _numbers(key, group.get(key)):
                    metrics[f"quasi_hyperbolic/{optimizer}/group{index}/{name}"] = value
        logger.log_metrics(metrics)


def _numbers(key: str, value: object) -> list[tuple[str, float]]:
    """("v1", 0.9) -> v1; ("betas", (0.9, 0.999)) -> beta1, beta2; a missing value -> nothing."""
    if value is None:
        return []
    if isinstance(value, (tuple, list)):
        return [(f"{key.removesuffix('s')}{index}", float(one)) for index, one in enumerate(value, start=1)]
    return [(key, float(value))]  # type: ignore[arg-type]
