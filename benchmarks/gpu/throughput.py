"""Tokens per second, MFU and memory of whole training steps, beside Composer and beside stock TorchTitan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gpu import ceilings, where
from gpu.rows import Options, Rows, ceiling
from gpu.trainers import Setting, Timed, leave, ours, stock, timed
from mosaic_photon.models.mpt_mup.state_dict_adapter import to_foundry_name
from mosaic_photon.names import clean_name

WARM_UP, LENGTH, FIRST_LOSS = 3, 2048, 0.01
VOCAB, BATCHES = 50368, (32, 16, 8, 4, 2)


@dataclass(frozen=True)
class Model:
    """A model of the suite, and what its memory follows from."""

    name: str
    """TrainSpec."""
    flavor: str
    overrides: dict[str, Any]
    parameters: float
    layers: int
    width: int

    def batches(self, options: Options) -> list[int]:
        """Batches to try, largest first: those that should fit, by 16 bytes a parameter and what a token leaves."""
        if options.tiny:
            return [2]
        memory = torch.cuda.get_device_properties(0).total_memory if options.device == "cuda" else 16 * 2**30
        a_sample = LENGTH * (34 * self.layers * self.width + 10 * VOCAB)
        return [b for b in BATCHES if 16 * self.parameters + b * a_sample < 0.9 * memory] or [1]


MPT_125M = Model("mpt_mup_mosaic", "125m", {}, 0.12e9, 12, 768)
MPT_1B = Model("mpt_mup_mosaic", "1b", {}, 1.3e9, 24, 2048)
MPT_TINY = Model("mpt_mup_mosaic", "debugmodel", {"d_model": 64, "n_layers": 2, "vocab_size": 2048}, 2e5, 2, 64)
LLAMA_1B = Model(
    "llama3_mosaic", "debugmodel",
    {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 1024, "ffn_dim_multiplier": 1.3,
     "rope_theta": 500000.0, "vocab_size": VOCAB},
    1.1e9, 16, 2048,
)  # fmt: skip
"""Llama 3.2 1B's shape with MPT's vocabulary."""
LLAMA_TINY = Model("llama3_mosaic", "debugmodel", {"dim": 64, "n_layers": 2, "n_heads": 4}, 3e5, 2, 64)


def mpt_125m(options: Options, rows: Rows) -> None:
    beside_composer(options, rows, options.pick(MPT_125M, MPT_TINY), steps=options.pick(20, 3))


def mpt_1b(options: Options, rows: Rows) -> None:
    beside_composer(options, rows, options.pick(MPT_1B, MPT_TINY), steps=options.pick(8, 3))


def beside_composer(options: Options, rows: Rows, model: Model, steps: int) -> None:
    """Also: waits for the device within a step, its kernels, and the time that the loader is waited for."""
    from gpu.composer_peer import fit

    kept: dict[str, Any] = {}

    def measure(batch: int) -> Timed:
        with ours(options, setting(options, model, batch)) as trainer:
            kept["weights"] = {
                to_foundry_name(clean_name(n)): p.detach().to("cpu", copy=True)
                for n, p in trainer.model_parts[0].named_parameters()
            }
            kept["args"] = trainer.model_args
            result, step = timed(trainer, options.device, WARM_UP, steps)
            where.look(step, options, rows)
            return result

    batch, here = first_that_fits(model.batches(options), measure)
    told(rows, "here", here, options, model is MPT_1B)
    rows.figure("loader wait", here.loader_s / here.seconds, "of the step", "<= 0.01")

    def measure_peer(batch: int) -> Timed:
        return fit(options, kept["args"], kept["weights"], here.first_inputs[:batch], steps)

    at_most = [batch, *(size for size in BATCHES if size < batch)]  # it may need more memory
    peer_batch, peer = first_that_fits(at_most, measure_peer)
    told(rows, "llm-foundry + Composer, sdpa", dataclasses.replace(peer, flops=here.flops), options, False)
    rows.figure("here / Composer", here.rate / peer.rate, "x", ">= 1.3")
    if peer_batch == batch:  # it ignores each sample's last label
        rows.check("first loss beside Composer's", abs(here.first_loss / peer.first_loss - 1), FIRST_LOSS)


def llama_1b(options: Options, rows: Rows) -> None:
    model = options.pick(LLAMA_1B, LLAMA_TINY)
    results = {}
    for name, trainer_of in {"here": ours, "stock TorchTitan": stock}.items():

        def measure(batch: int, trainer_of: Any = trainer_of) -> Timed:
            with trainer_of(options, setting(options, model, batch)) as trainer:
                return timed(trainer, options.device, WARM_UP, options.pick(8, 3))[0]

        _, results[name] = first_that_fits(model.batches(options), measure)
        told(rows, name, results[name], options, name == "here")
    rows.figure("here / stock TorchTitan", results["here"].rate / results["stock TorchTitan"].rate, "x", ">= 1.0")


def setting(options: Options, model: Model, batch: int) -> Setting:
    length, compiled = options.pick(LENGTH, 64), options.device == "cuda"
    return Setting(model.name, model.flavor, model.overrides, batch, length, compiled)


def first_that_fits(batches: list[int], attempt: Callable[[int], Timed]) -> tuple[int, Timed]:
    """The first batch for which the device's memory is enough, and what was measured.

    Raises:
        RuntimeError: there is none.
    """
    for batch in batches:
        result = None
        try:
            result = attempt(batch)
        except torch.OutOfMemoryError:
            print(f"out of memory with a batch of {batch}", flush=True)
        leave()  # not before: an exception holds the frames that it came through, and they hold tensors
        if result is not None:
            return batch, result
    raise RuntimeError(f"out of memory with each batch of {batches}")


def told(rows: Rows, name: str, result: Timed, options: Options, aimed: bool) -> None:
    """Rows of one contender."""
    batch, length = result.first_inputs.shape
    rows.figure(f"{name}, batch {batch} x {length}", result.rate, "tokens/s")
    if peak := ceiling(options.out, ceilings.MATMUL):
        share = result.rate * result.flops / (peak * 1e12)
        rows.figure(f"{name}: MFU", share, "of the measured peak", ">= 0.55" if aimed else "")
    rows.figure(f"{name}: memory", result.peak_gib, "GiB")
