"""TorchTitan 0.3 ends a job by RuntimeError where the loss of a step that it reports is not finite.

It does so at those steps alone and after the weights are ruined; `[mosaic] nonfinite` says what is to be done, at each
step. No upstream issue (its code says "make this step work even logging is off"). Delete when it can be turned off.
"""

from types import SimpleNamespace

NEEDED = "torchtitan>=0.3"


def apply() -> None:
    """Let TorchTitan's trainer take any loss for a finite one."""
    from torchtitan import trainer

    trainer.math = SimpleNamespace(isfinite=lambda loss: True)
