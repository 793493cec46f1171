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


class Marked(Poison):
    """Does so in each step that reads one of these samples of `mds_data.sample_tokens`, wherever it is read."""

    def __init__(self, samples: list[int], value: float = 1e3) -> None:
        super().__init__(0, 0, value=value)
        self.samples = set(samples)

    def after_backward(self, state: State, logger: Logger) -> None:
        first = state.batch["input_ids"][:, :2].tolist()
        here = not self.samples.isdisjoint(1000 * (thousands - 3) + ones - 3 for thousands, ones in first)
        self.steps = range(state.timestamp.batch.value + 1, state.timestamp.batch.value + 1 + here)
        self.rank = dist.get_global_rank()
        super().after_backward(state, logger)
