"""TorchTitan's checkpointer, which begins from what `find` has found, and for which only whole checkpoints count."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.state_dict_loader import load
from torchtitan.components.checkpoint import MODEL, AsyncMode, CheckpointManager
from torchtitan.tools.logging import logger

from mosaic_photon import stores
from mosaic_photon.checkpoints import description
from mosaic_photon.checkpoints.contents import BEGIN_ANEW, reader_of, shape_of
from mosaic_photon.checkpoints.find import (
    HF_INDEX,
    METADATA,
    Start,
    checkpoint_folder,
    complete_steps,
    is_complete,
    step_folders,
)
from mosaic_photon.compat import reused_stager
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.report import recorder
from mosaic_photon.report.record import CHECKPOINT
from mosaic_photon.titan.interface import Loop

WRITTEN_OVER = (METADATA, HF_INDEX, "model-?????-of-?????.safetensors", "sharded/shard-*.safetensors")
"""What must be gone of a checkpoint before it is written over. Torch makes the files in Hugging Face's format of all
parts that it finds, those that a killed save on more ranks has left half-written too."""


class Checkpointer(CheckpointManager):
    """TorchTitan's, except for what it does with folders that are empty, half-written or not its own.

    TorchTitan takes the initial weights only where there is no checkpoint folder at all; for `keep_latest_k` it counts
    half-written folders and removes whatever has `step-N` in its name; and a checkpoint that is written over counts as
    whole meanwhile.
    """

    start: Start
    allow_partial_load: bool
    model_args: Any
    check_sound: Callable[[], None]
    """Raises where the weights are not worth saving."""
    removing: list[threading.Thread]
    """Of checkpoints in a store, of which TorchTitan 0.2.2 knows nothing."""
    _written = _writing = _load_step = -1
    _begun = 0.0
    """When the save began, as `time.monotonic` tells it."""

    @classmethod
    def of(
        cls, titan: CheckpointManager, job: MosaicJobConfig, start: Start, loop: Loop, model_args: Any
    ) -> Checkpointer:
        """The same object as one of this class, which saves the loop's states too.

        TorchTitan's Trainer names the class that it builds.
        """
        titan.__class__ = cls
        titan.start, titan.allow_partial_load, titan.model_args = start, job.mosaic.allow_partial_load, model_args
        titan.folder, titan.removing = checkpoint_folder(job), []
        titan.check_sound = loop.check_sound
        titan.states |= loop.states()
        return titan

    def save(self, curr_step: int, last_step: bool = False) -> None:
        """TorchTitan's, of weights that are sound; the last one too counts for `keep_latest_k`."""
        saves = self._should_save(curr_step, last_step)
        if saves:
            self.check_sound()
        with recorder.spent(CHECKPOINT) if saves else nullcontext():
            super().save(curr_step, last_step)
        if saves and last_step:
            self._purge_stale_checkpoints()

    @torch.no_grad()
    def load(self, step: int = -1) -> bool:
        """Load `start`, in whose choice `step` has had its say; returns whether there was anything to load."""
        if not self.enable:
            return False
        self._load_step = step
        if dist.get_rank() == 0:
            self._say_start()
        if self.start.path is None:
            return False
        hf = self.start.hf
        states = self._states_to_load(self.start.model_only)
        self.dcp_load(states, self.start.path, hf, hf and self.initial_load_in_hf_quantized)
        return True

    def _say_start(self) -> None:
        """One line: what the job begins from, and what half-written newer checkpoints are passed over for it."""
        folders = step_folders(self.folder).items()
        half = [f"step-{step}" for step, path in folders if step > self.start.step and not is_complete(path)]
        if half:
            logger.warning(f"{self.start}; half-written and passed over: {', '.join(half)}.")
        else:
            logger.info(f"{self.start}.")

    def dcp_load(self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool) -> None:
        """TorchTitan's, and with `allow_partial_load` only what the checkpoint has in the job's shape."""
        planner = FittingLoadPlanner(allow_partial_load=self.allow_partial_load)
        if from_hf:
            named = self.sd_adapter.to_hf(state_dict)
            load(named, storage_reader=self.sd_adapter.get_hf_storage_reader(checkpoint_id, from_quantized),
                 planner=planner)  # fmt: skip
            state_dict = self.sd_adapter.from_hf(named)
        else:
            load(state_dict, storage_reader=reader_of(checkpoint_id), planner=planner)
        self.states[MODEL].load_state_dict(state_dict)

    def dcp_save(self, state_dict: dict[str, Any], checkpoint_id: str, *args: Any, **kwargs: Any) -> Any:
        """TorchTitan's, with the model's description; what is written over is half-written until the new one is whole.

        No rank writes before rank 0 has planned, so what rank 0 removes here is gone by then.
        """
        self._written, self._writing = self._writing, int(checkpoint_id.rpartition("-")[2])
        self._begun = time.monotonic()
        if dist.get_rank() == 0:
            for name in stores.matching(checkpoint_id, WRITTEN_OVER):
                stores.remove(name)
            description.write(checkpoint_id, self.model_args)
        if getattr(self, "stager", None) is not None:  # 0.3 saves by another package
            reused_stager.apply()
        with self.saves_understood():
            return super().dcp_save(state_dict, checkpoint_id, *args, **kwargs)

    def _async_wait(self) -> None:
        with self.saves_understood():
            super()._async_wait()

    @contextmanager
    def saves_understood(self) -> Iterator[None]:
        """A store that has not taken a checkpoint is no fault of ours: one message. Raises ConfigError."""
        try:
            yield
        except CheckpointException as error:
            if not stores.is_url(self.folder):
                raise
            self.save_future = None
            cause = next(cause for cause, _ in error.failures.values())
            reason = f"{type(cause).__name__}: {cause}".rstrip(".")
            raise ConfigError(
                f"{self.folder}/step-{self._writing}: saving failed{stores.after(self._begun)}: {reason}"
                f". The last whole checkpoint stays, and the same command goes on from it."
            ) from error

    def save_now(self, step: int) -> bool:
        """Write a whole checkpoint of `step`, unless it has just been written; returns whether one is there."""
        if not self.enable or self.load_only:
            return False
        if not self._should_save(step, last_step=False):
            self.interval = 1  # TorchTitan saves completely only on the interval; this is the last save
            self.save(step)
        self.finish()
        return True

    def finish(self) -> None:
        """Wait until what is being saved is written."""
        self._async_wait()

    def _purge_stale_checkpoints(self) -> None:
        """Remove the job's whole checkpoints but for the newest `keep_latest_k`, the one being written included.

        A job that goes on from an older one by `load_step` writes checkpoints that are not among the newest: the two
        that it wrote last stay, and what the same command begins from.
        """
        if self.keep_latest_k <= 0 or dist.get_rank() != 0:
            return
        complete = complete_steps(self.folder)
        pending = self.async_mode != AsyncMode.DISABLED and self._writing not in complete
        for step, path in list(complete.items())[: pending - self.keep_latest_k]:
            if step in (self._written, self._writing, self._load_step):
                continue
            if stores.is_url(path):
                if path != (self.initial_load_path or "").rstrip("/"):
                    self._remove(path)
            elif not os.path.islink(path) and os.path.realpath(path) != os.path.realpath(self.initial_load_path or ""):
                self.purge_queue.put(path)

    def _remove(self, url: str) -> None:
        """Remove a checkpoint from its store beside the steps; from the first moment on it counts as half-written."""

        def remove() -> None:
            try:
                stores.remove(stores.join(url, METADATA))
                stores.remove_folder(url)
            except ConfigError as error:
                logger.warning(f"checkpoint.keep_latest_k: {url} stays: {error}")

        self.removing.append(threading.Thread(target=remove, daemon=True))
        self.removing[-1].start()

    def close(self) -> None:
        """Wait for what is being removed, end TorchTitan's threads."""
        for thread in getattr(self, "removing", ()):
            thread.join()
        super().close()


class FittingLoadPlanner(DefaultLoadPlanner):
    """Leaves out what the checkpoint lacks or has in another shape, where that is allowed.

    States that may begin anew, of callbacks and random generators, may always be missing.
    """

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        there = self.metadata.state_dict_metadata
        self.state_dict = {
            key: value for key, value in self.state_dict.items() if self._loads(key, value, there.get(key))
        }
        return super().create_local_plan()

    def _loads(self, key: str, value: Any, stored: Any) -> bool:
        if stored is None:
            return not (self.allow_partial_load or key.startswith(BEGIN_ANEW))
        return not self.allow_partial_load or shape_of(stored) in (None, tuple(getattr(value, "shape", ())))
