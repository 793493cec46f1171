"""TorchTitan 0.2.2 under pipeline parallelism: gradients are not divided by the number of tokens.

The schedule runs backward on the loss function's sum, and only the logged loss is divided. Here the schedule's loss
function divides. Upstream: pytorch/torchtitan#2972. Delete, with the pipeline branch of
`MosaicTrainer.forward_backward_step`, when TorchTitan scales the loss before the schedule's backward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from mosaic_photon.errors import ConfigError

NEEDED = "torchtitan<0.3"


class DividedLoss:
    """`loss_fn(pred, labels)` divided by what `divided_by` says; without it an error, not a wrong gradient."""

    def __init__(self, loss_fn: Callable[..., torch.Tensor]) -> None:
        self.loss_fn = loss_fn
        self._denominator: torch.Tensor | float | None = None

    @contextmanager
    def divided_by(self, denominator: torch.Tensor | float) -> Iterator[None]:
        """Within it: the labels of the global batch in training, 1 for a sum."""
        self._denominator = denominator
        try:
            yield
        finally:
            self._denominator = None

    def __call__(self, pred: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Raises ConfigError under a trainer that does not divide."""
        if self._denominator is None:
            raise ConfigError(
                "under pipeline parallelism TorchTitan's own Trainer does not divide gradients by the number of tokens"
                " (pytorch/torchtitan#2972): train with mosaic_photon.train_with_mosaic."
            )
        return self.loss_fn(pred, labels) / self._denominator
