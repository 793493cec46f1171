"""llm-foundry's KillLossSpike with a `window_size` looks at one step alone, as its window grows beyond that size. It
has no state in checkpoints, so that after a resume the window is empty.

No upstream issue. llm-foundry 0.22.0. Delete when the window is a deque of its size and in a `state_dict`.
"""

from collections import deque
from typing import Any

from llmfoundry.callbacks import KillLossSpike as FoundrysKillLossSpike

NEEDED = "llm-foundry"

SETTLED = ("window_size", "loss_cap")
"""Arguments that a job may leave to be settled in its first steps; whether each is, its `..._set` says."""


class KillLossSpike(FoundrysKillLossSpike):
    """llm-foundry's, with a window that slides, and that goes on after a resume."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.window_size_set:
            self.loss_window: deque[float] = deque(maxlen=self.window_size)

    def state_dict(self) -> dict[str, Any]:
        """The window, its outliers, and what has been settled since the start."""
        names = ["outlier_counter", *SETTLED, *(f"{name}_set" for name in SETTLED)]
        return {"loss_window": list(self.loss_window)} | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back; what this job's arguments set stays as they say."""
        self.outlier_counter = state["outlier_counter"]
        for name in SETTLED:
            if not getattr(self, f"{name}_set"):
                self.__dict__.update({key: state[key] for key in (name, f"{name}_set")})
        self.loss_window = deque(state["loss_window"], maxlen=self.window_size if self.window_size_set else None)
