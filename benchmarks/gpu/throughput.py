"""Tokens per second, MFU and memory of whole training steps, beside Composer and beside stock TorchTitan."""

from __future__ import annotations

import dataclasses
from typing import Any

import mosaic_photon.compat  # noqa: F401  (before TorchTitan)

# isort: split
import torch

from gpu import ceilings, where
from gpu.rows import Options, Rows, ceiling
from gpu.trainers import Setting, Timed, leave, ours, stock, timed
from mosaic_photon.models.mpt_mup.state_dict_adapter import to_foundry_name
from mosaic_photon.names import clean_name

WARM_UP, LENGTH, FIRST_LOSS = 3, 2048, 0.01
TINY: dict[str, Any] = {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 2048}
LLAMA_1B: dict[str, Any] = {
    "dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 1024, "ffn_dim_multiplier": 1.3,
    "rope_theta": 500000.0, "vocab_size": 50368,
}  # fmt: skip
"""1.08 billion parameters: Llama 3.2 1B's shape with MPT's vocabulary."""
TINY_LLAMA: dict[str, Any] = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 2048}


def mpt_125m(options: Options, rows: Rows) -> None:
    """Also: waits for the device within a step, its kernels, and the time that the loader is waited for."""
    beside_composer(options, rows, "125m", batches=(32, 16, 8), steps=options.pick(20, 3), look_inside=True)


def mpt_1b(options: Options, rows: Rows) -> None:
    beside_composer(options, rows, "1b", batches=(16, 8, 4), steps=options.pick(8, 3), look_inside=False)


def beside_composer(
    options: Options, rows: Rows, flavor: str, batches: tuple[int, ...], steps: int, look_inside: bool
) -> None:
    from gpu.composer_peer import fit

    kept: dict[str, Any] = {}

    def measure(setting: Setting) -> Timed:
        with ours(options, setting) as trainer:
            kept["weights"] = {
                to_foundry_name(clean_name(n)): p.detach().to("cpu", copy=True)
                for n, p in trainer.model_parts[0].named_parameters()
            }
            kept["args"] = trainer.model_args
            kept["flops"] = trainer.metrics_processor.num_flops_per_token
            result, step = timed(trainer, options.device, WARM_UP, steps)
            if look_inside:
                where.look(step, options, rows)
            return result

    flavor_here, overrides = options.pick((flavor, {}), ("debugmodel", TINY))
    setting, here = largest(options, "mpt_mup_mosaic", flavor_here, overrides, batches, measure)
    told(rows, "here", here, setting, kept["flops"], options, "1b" in flavor)
    rows.figure("loader wait", here.loader_s / here.seconds, "of the step", "<= 0.01")
    peer = None
    for batch in [setting.batch, *(size for size in batches if size < setting.batch)]:  # it may need more memory
        try:
            peer = fit(options, kept["args"], kept["weights"], here.first_inputs[:batch], steps)
            break
        except torch.OutOfMemoryError:
            leave()
    if peer is None:
        rows.failed("Composer", "out of memory at every batch")
        return
    told(
        rows,
        "llm-foundry + Composer, sdpa",
        peer,
        dataclasses.replace(setting, batch=batch),
        kept["flops"],
        options,
        False,
    )
    rate, other = here.first_inputs.numel() / here.seconds, peer.first_inputs.numel() / peer.seconds
    rows.figure("here / Composer", rate / other, "x", ">= 1.3")
    if batch == setting.batch:  # it ignores each sample's last label
        rows.check("first loss beside Composer's", abs(here.first_loss / peer.first_loss - 1), FIRST_LOSS)


def llama_1b(options: Options, rows: Rows) -> None:
    flops = {}
    steps = options.pick(8, 3)

    def measure(setting: Setting) -> Timed:
        with ours(options, setting) as trainer:
            flops["token"] = trainer.metrics_processor.num_flops_per_token
            return timed(trainer, options.device, WARM_UP, steps)[0]

    setting, here = largest(
        options, "llama3_mosaic", "debugmodel", options.pick(LLAMA_1B, TINY_LLAMA), (16, 8, 4), measure
    )
    told(rows, "here", here, setting, flops["token"], options, True)
    with stock(options, setting) as trainer:
        peer, _ = timed(trainer, options.device, WARM_UP, steps)
    told(rows, "stock TorchTitan", peer, setting, flops["token"], options, False)
    rows.figure("here / stock TorchTitan", peer.seconds / here.seconds, "x", ">= 1.0")


def largest(
    options: Options, name: str, flavor: str, overrides: dict[str, Any], batches: tuple[int, ...], measure: Any
) -> tuple[Setting, Timed]:
    """The first of the batches, largest first, that the device's memory takes."""
    length = options.pick(LENGTH, 64)
    for batch in options.pick(batches, (2,)):
        setting = Setting(name, flavor, overrides, batch, length, compiled=options.device == "cuda")
        try:
            return setting, measure(setting)
        except torch.OutOfMemoryError:
            print(f"out of memory with a batch of {batch}", flush=True)
            leave()
    raise RuntimeError(f"out of memory at every batch of {batches}")


def told(rows: Rows, name: str, result: Timed, setting: Setting, flops: float, options: Options, aimed: bool) -> None:
    """Rows of one contender."""
    rate = setting.tokens / result.seconds
    rows.figure(f"{name}, batch {setting.batch} x {setting.seq_len}", rate, "tokens/s")
    if peak := ceiling(options.out, ceilings.MATMUL):
        rows.figure(f"{name}: MFU", rate * flops / (peak * 1e12), "of the measured peak", ">= 0.55" if aimed else "")
    rows.figure(f"{name}: memory", result.peak_gib, "GiB")
