"""`[mosaic] loss_per_stream`: what the model makes of each stream, and how much of it the run has read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mosaic_photon.dataloader import DataSpecDataLoader
from mosaic_photon.names import metric_names
from mosaic_photon.titan.parts import IGNORE_INDEX

MANY = 256
"""Micro-batches whose rows are kept one by one until a report."""


class StreamMeter:
    """Counts by stream, whose numbers are the plan's. Arrays have the shape (streams,).

    A row's stream is known from the plan. Its labels are counted while they are on the host; its loss stays on the
    device until a report. So only a report waits for the device, and asks the other ranks.
    """

    def __init__(self, loader: DataSpecDataLoader) -> None:
        self.loader = loader
        self.names = metric_names(loader.plan.names)
        self.sizes = np.maximum(loader.data.dataset.samples_per_stream, 1)
        self.read = np.zeros(len(self.names), np.int64)
        """Samples of all ranks since the run's first step."""
        self.epochs = np.zeros(len(self.names))
        """Passes over the stream since then."""
        self._loaded, self._running = "", False
        self._rows_of_step: NDArray[np.int64] = np.zeros(0, np.int64)
        self._begin_report()

    def _begin_report(self) -> None:
        self.labels = np.zeros(len(self.names), np.int64)
        """Of this data-parallel rank since the last report."""
        self._parts: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._streams: list[NDArray[np.int64]] = []

    def begin(self) -> None:
        """The first step of this process comes: go on with the counts of the checkpoint or the plan."""
        saved, plan, batch = json.loads(self._loaded or "null"), self.loader.plan, self.loader.progress.batch
        if saved:
            counts = np.array([saved.get(name, (0, 0.0)) for name in plan.names])
            self.read, self.epochs = counts[:, 0].astype(np.int64), counts[:, 1]
        elif batch:
            self.epochs = plan.passes(batch)
            self.read = np.round(self.epochs * self.sizes).astype(np.int64)
        self._running = True

    def begin_step(self) -> None:
        """Of the batch that comes, count the samples and know this rank's rows."""
        plan, progress, layout = self.loader.plan, self.loader.progress, self.loader.layout
        batch, done = progress.batch, progress.samples_in_step
        read = self._count(plan.stream_of(plan.samples(batch)[done:]))
        self.read += read
        self.epochs += read / self.sizes
        mine = np.concatenate([ids.reshape(-1) for ids in plan.blocks(batch, batch + 1, layout, done)])
        self._rows_of_step, self._counted, self._begun = plan.stream_of(mine), 0, 0

    def count(self, labels: Tensor) -> None:
        """Count the labels [B, S] of the next rows, on the host."""
        of_rows = (labels != IGNORE_INDEX).sum(1).numpy()
        streams = self._rows_of_step[self._counted : self._counted + len(of_rows)]
        self.labels += self._count(streams, of_rows)
        self._counted += len(of_rows)

    def begin_micro_batch(self, rows: int) -> None:
        """The losses of the next rows follow, on ranks that have them."""
        self._put_away()
        self._streams.append(self._rows_of_step[self._begun : self._begun + rows])
        self._begun += rows

    def keep_rows(self, losses: Tensor) -> None:
        """Keep what rows of this micro-batch have of the loss, float32 [B], on its device."""
        self._parts.append(losses)

    def _put_away(self) -> None:
        """A pipeline gives a micro-batch in parts; before the first it tries the loss on one that is none."""
        if self._parts:
            self._losses.append(torch.cat(self._parts)[-len(self._streams[-1]) :])
            self._parts = []
        if len(self._losses) == MANY:
            self._losses = [torch.cat(self._losses)]

    def losses(self) -> NDArray[np.float64]:
        """The sums of this rank's losses since the last report; zeros where it has none. Waits for the device."""
        self._put_away()
        if not self._losses:
            return np.zeros(len(self.names))
        of_rows = torch.cat(self._losses).double().cpu().numpy()
        return self._count(np.concatenate(self._streams), of_rows)

    def report(self, losses: NDArray[np.float64], labels: NDArray[np.float64]) -> dict[str, float]:
        """What is logged, of all ranks' sums. A stream without labels since the last report has no loss."""
        tokens, found = self.read * self.loader.seq_len, {}
        for number, name in enumerate(self.names):
            if labels[number]:
                found[f"loss/{name}"] = float(losses[number] / labels[number])
            found |= {f"tokens/{name}": int(tokens[number]), f"epochs/{name}": float(self.epochs[number])}
        self._begin_report()
        return found

    def _count(self, streams: NDArray[np.int64], weights: NDArray[Any] | None = None) -> NDArray[Any]:
        counts = np.bincount(streams, weights, minlength=len(self.names))
        return counts if weights is None or weights.dtype.kind == "f" else counts.astype(np.int64)

    def state_dict(self) -> dict[str, str]:
        """Samples and passes by stream, as JSON; '' before `begin`."""
        counts = zip(self.loader.plan.names, self.read.tolist(), self.epochs.tolist(), strict=True)
        return {"counts": json.dumps({name: pair for name, *pair in counts}) if self._running else ""}

    def load_state_dict(self, state_dict: Mapping[str, str]) -> None:
        """Keep them for `begin`; '' where the checkpoint has none."""
        self._loaded = state_dict["counts"]
