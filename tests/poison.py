"""A callback that ruins gradients, for the tests: named in jobs as `poison:Poison`."""

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch.distributed.tensor import DTensor


class Poison(Callback):
    """Sets one gradient of one rank to a value that is none, in the steps from `first` to `last`."""

    def __init__(self, first: int, last: int, rank: int = 0, value: float = float("nan")) -> None:
        self.steps, self.rank, self.value = range(first, last + 1), rank, value

    def after_backward(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value + 1 in self.steps and dist.get_global_rank() == self.rank:
            gradient = next(p.grad for p in state.model.parameters() if p.grad is not None)
            part = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            part.view(-1)[0] = self.value
