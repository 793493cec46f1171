"""llm-foundry's FDiffMetrics has no state in checkpoints: the first difference after a resume is missing.

No upstream issue. llm-foundry 0.22.0. Delete when FDiffMetrics has a `state_dict`.
"""

from typing import Any

from llmfoundry.callbacks import FDiffMetrics as FoundrysFDiffMetrics

NEEDED = "llm-foundry"

LAST = ("train_prev_loss", "train_prev_metric", "eval_prev_metric")


class FDiffMetrics(FoundrysFDiffMetrics):
    """llm-foundry's, and goes on after a resume."""

    def state_dict(self) -> dict[str, Any]:
        """The last values."""
        return {name: getattr(self, name) for name in LAST}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.__dict__.update(state)
