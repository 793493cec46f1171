"""TorchTitan's container of schedulers, which saves where the run is and nothing else."""

from __future__ import annotations

from typing import Any

from mosaic_photon.titan.parts import LRSchedulersContainer


class PositionOnlySchedulers(LRSchedulersContainer):
    """One LambdaLR a model part, all with one multiplier of the step.

    The checkpoint holds the number of steps. Learning rates are computed from the job on loading, so that a changed
    peak, length or schedule takes effect, and model parts may have different numbers of parameter groups.
    """

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.schedulers[0].last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for scheduler in self.schedulers:
            # One step before the position, then a step: torch computes and sets the learning rates itself.
            scheduler.last_epoch = int(state_dict["last_epoch"]) - 1
            scheduler._step_count = 0  # no warning that the optimizer has not stepped yet
            scheduler.step()
            scheduler._step_count = scheduler.last_epoch + 1
