"""Holds back the optimizer's step where loss or gradient norm leaps, and ends a job in which they keep leaping.

The loop asks it between clipping and the optimizer's step (`train/finite.py`), with numbers of all ranks together, so
that all ranks decide alike.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from composer.core import Callback, State
from composer.loggers import Logger

from mosaic_photon.errors import ConfigError

NO_VETO = (
    "spike_guard does nothing here: under Composer's Trainer a callback has no veto on the optimizer's step. Train "
    "with mosaic-photon, or see llm-foundry's kill_loss_spike, which ends a run."
)


@dataclass(frozen=True)
class HeldBack:
    """A step that made no optimizer step."""

    step: int
    batch: int
    """The plan's, counted from 1."""
    loss: float
    grad_norm: float


class SpikeGuard(Callback):
    """Makes no optimizer step where loss or gradient norm lies far above its running mean, or is not finite.

    Mean and deviation are of the last `window` steps that were made; until there are as many, only numbers that are not
    finite count.

    Args:
        deviations: how far above the mean, in standard deviations.
        window: steps.
        max_skips: how many of `window` steps in a row may be held back. One more ends the job.
    """

    def __init__(self, deviations: float = 6, window: int = 128, max_skips: int = 3) -> None:
        for name, value, least in (("window", window, 2), ("max_skips", max_skips, 0)):
            if value < least:
                raise ConfigError(f"callbacks.spike_guard.{name} = {value}: must be at least {least}.")
        if not 0 < deviations < math.inf:
            raise ConfigError(f"callbacks.spike_guard.deviations = {deviations}: must be a number above 0.")
        self.deviations, self.window, self.max_skips = deviations, window, max_skips
        self.made: deque[tuple[float, float]] = deque(maxlen=window)
        """Loss and gradient norm of the steps that were made."""
        self.held_back: deque[HeldBack] = deque(maxlen=max_skips + 1)
        """The last ones: as many as end the job."""
        self.count = 0
        """All that have been held back in the run."""
        self.has_veto = False
        self._metrics: dict[str, float] = {}

    def judge(self, step: int, batch: int, loss: float, norm: float) -> str | None:
        """Take in a step's numbers; returns why its optimizer step is to be held back, in words, or None.

        Args:
            step: its number.
            batch: the plan's batch that it has taken, counted from 1.
            loss: the global mean.
            norm: the gradients', before clipping.
        """
        why = self._why(loss, norm)
        if why is None:
            self.made.append((loss, norm))
        else:
            self.held_back.append(HeldBack(step, batch, loss, norm))
            self.count += 1
            self._metrics |= {"loss": loss, "grad_norm": norm}
        self._metrics["held_back"] = self.count
        return why

    def repeated(self) -> list[HeldBack]:
        """The steps held back of late, where they are more than the job may go on with; else nothing."""
        if not self.held_back:
            return []
        first = self.held_back[-1].step - self.window
        late = [one for one in self.held_back if one.step > first]
        return late if len(late) > self.max_skips else []

    def _why(self, loss: float, norm: float) -> str | None:
        wrong = []
        means, spreads = self._running()
        for name, value, mean, spread in zip(("loss", "grad_norm"), (loss, norm), means, spreads, strict=True):
            far = (value - mean) / spread if spread else math.inf * (value - mean) if value != mean else 0.0
            if math.isfinite(far) and not math.isnan(mean):
                self._metrics[f"{name}_deviations"] = far
            told = name.replace("grad_norm", "gradient norm")
            if not math.isfinite(value):
                wrong.append(f"its {told} is not finite")
            elif far > self.deviations:
                wrong.append(f"its {told} lies {far:.1f} deviations above the mean of {mean:g}")
        return " and ".join(wrong) or None

    def _running(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of loss and of gradient norm; nan before there are enough steps."""
        if len(self.made) < self.window:
            return [math.nan] * 2, [math.nan] * 2
        numbers = np.array(self.made)
        return numbers.mean(0).tolist(), numbers.std(0).tolist()

    def fit_start(self, state: State, logger: Logger) -> None:
        """Say where there is nobody who asks."""
        del state, logger
        if not self.has_veto:
            warnings.warn(NO_VETO, stacklevel=2)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log what has been seen of the step: of one that was held back its numbers, which TorchTitan leaves out."""
        del state
        logger.log_metrics({f"spike_guard/{name}": value for name, value in self._metrics.items()})
        self._metrics = {}

    def state_dict(self) -> dict[str, Any]:
        """The numbers that means are taken of, and what has been held back of late; it does not grow with the run."""
        late = [asdict(one) for one in self.held_back]
        return {"made": [list(one) for one in self.made], "held_back": late, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back; of a longer window, and of more, the last ones."""
        self.made = deque(map(tuple, state["made"]), maxlen=self.window)
        self.held_back = deque((HeldBack(**one) for one in state["held_back"]), maxlen=self.max_skips + 1)
        self.count = state["count"]
