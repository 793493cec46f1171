"""Composer's ActivationMonitor asks for the maximum of complex tensors, which torch refuses; Llama 3 hands its rotary
frequencies, complex numbers, to every layer.

No upstream issue. Delete when ActivationMonitor passes over complex tensors, and with it the entry point in pyproject.
"""

import torch
from composer.callbacks import ActivationMonitor as ComposersActivationMonitor


class ActivationMonitor(ComposersActivationMonitor):
    """Composer's, without statistics of complex tensors."""

    def add_metrics(self, metrics: dict[str, float], name: str, suffix: str, value: torch.Tensor) -> None:
        """Add one tensor's statistics to `metrics`; none of a complex tensor."""
        if not value.is_complex():
            super().add_metrics(metrics, name, suffix, value)
