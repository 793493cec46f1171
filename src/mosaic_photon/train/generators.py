"""Each rank's random generators: seeded as Composer seeds them, and kept in checkpoints, so that dropout goes on."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mosaic_photon.titan.layouts import ParallelDims
from mosaic_photon.titan.tools import logger


class Generators:
    """Python's, NumPy's, torch's and the device's generator of this process.

    Args:
        seed: the same on all ranks.
        parallel_dims: the layout; in another one a rank's generators are of no use.
        device: of the model.
    """

    def __init__(self, seed: int, parallel_dims: ParallelDims, device: torch.device) -> None:
        self.seed, self.stream, self.device = seed, stream_of(parallel_dims), device
        degrees = ("dp_replicate", "dp_shard", "cp", "tp", "pp")
        self.layout = {name: getattr(parallel_dims, name) for name in degrees} | {"device": device.type}
        self.key = f"rank_{dist.get_rank()}"
        self._running = False
        self._loaded = ""

    def begin(self, step: int) -> None:
        """Before the first step of this process, which comes after `step`: go on as the checkpoint has it, or seed."""
        saved = json.loads(self._loaded) if self._loaded else {}
        if saved.get("layout") == self.layout:
            self._set(saved["states"])
        else:
            seed_all(seed_of(self.seed, step, self.stream))
            if step and dist.get_rank() == 0:
                whose = f"is of another layout ({saved['layout']})" if saved else "is not in the checkpoint"
                logger.info(
                    f"The state of the random generators {whose}: dropout goes on from step {step} with seeds made of "
                    "debug.seed, the step and the rank."
                )
        self._running = True

    def state_dict(self) -> dict[str, str]:
        """This rank's generators as JSON, under a key of its own, which ranks of another layout do not ask for."""
        return {self.key: json.dumps({"layout": self.layout, "states": self._get()}) if self._running else ""}

    def load_state_dict(self, state_dict: Mapping[str, str]) -> None:
        """Keep them for `begin`; '' where the checkpoint has none of this rank."""
        self._loaded = state_dict[self.key]

    def _get(self) -> dict[str, Any]:
        name, keys, *rest = np.random.get_state(legacy=True)
        states = {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}
        for kind, module in self._torch().items():
            states[kind] = base64.b64encode(module.get_rng_state().numpy().tobytes()).decode()
        return states

    def _set(self, states: Mapping[str, Any]) -> None:
        version, keys, gauss = states["python"]
        random.setstate((version, tuple(keys), gauss))
        np.random.set_state(tuple(states["numpy"]))
        for kind, module in self._torch().items():
            module.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(states[kind])), dtype=torch.uint8))

    def _torch(self) -> dict[str, Any]:
        device = {} if self.device.type == "cpu" else {"device": torch.get_device_module(self.device)}
        return {"torch": torch, **device}


def seed_of(seed: int, step: int, stream: int) -> int:
    """The seed of a stream: at a run's begin Composer's, `seed + rank`, later one that no other step has."""
    if step == 0:
        return (seed + stream) % 2**64
    return int(np.random.SeedSequence([seed % 2**64, step, stream]).generate_state(1, np.uint64)[0])


def seed_all(seed: int) -> None:
    """Seed all generators of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # the device's too


def stream_of(parallel_dims: ParallelDims) -> int:
    """Which random numbers a rank draws: others on each data-parallel, context-parallel and pipeline rank.

    Ranks of a tensor-parallel group draw the same, as what is replicated among them must stay so. Where ranks are
    data-parallel only, it is the rank.
    """
    loss, stage = (parallel_dims.get_optional_mesh(name) for name in ("loss", "pp"))
    part, parts = (loss.get_local_rank(), loss.size()) if loss else (0, 1)
    return part + parts * (stage.get_local_rank() if stage else 0)
