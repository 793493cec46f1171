"""Composer's EarlyStopper has no state in checkpoints: after a resume its best value is forgotten and its patience new.

No upstream issue. Composer 0.32.1. Delete when EarlyStopper has a `state_dict`.
"""

from typing import Any

import torch
from composer.callbacks import EarlyStopper as ComposersEarlyStopper
from composer.core import Timestamp

NEEDED = "mosaicml"


class EarlyStopper(ComposersEarlyStopper):
    """Composer's, and goes on after a resume."""

    def state_dict(self) -> dict[str, Any]:
        """The best value, and when it was."""
        if self.best is None:
            return {}
        when = self.best_occurred
        return {"best": float(self.best), "epoch": when.epoch.value, "batch": when.batch.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take both back."""
        self.best = torch.tensor(state["best"])
        self.best_occurred = Timestamp(epoch=state["epoch"], batch=state["batch"])
