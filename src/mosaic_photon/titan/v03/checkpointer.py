"""The package's checkpointer on 0.3's, which has other names for waiting and builds nothing where it is not enabled."""

from __future__ import annotations

from typing import Any

from mosaic_photon.checkpoints.find import Start
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan import checkpointer
from mosaic_photon.titan.interface import Loop


class Checkpointer(checkpointer.Checkpointer):
    """See its base."""

    @classmethod
    def of(cls, titan: Any, job: MosaicJobConfig, start: Start, loop: Loop, model_args: Any) -> Checkpointer:
        """The same object as one of this class, which saves the loop's states too."""
        vars(titan).setdefault("states", {})
        made = super().of(titan, job, start, loop, model_args)
        assert isinstance(made, Checkpointer)
        return made

    def finish(self) -> None:
        """Wait until what is being saved is written."""
        self.maybe_wait_for_saving()

    def _wait_for_saving(self) -> None:
        with self.saves_understood():
            super()._wait_for_saving()
