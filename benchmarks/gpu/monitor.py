"""OptimizerMonitor on the device against Composer's own monitor, and against plain norms in float64."""

from __future__ import annotations

import logging
import math
import warnings
from typing import Any

import torch
from composer import Callback, Logger, State, Trainer
from composer.callbacks import OptimizerMonitor as ComposersMonitor
from composer.loggers import InMemoryLogger
from composer.optim import DecoupledAdamW
from llmfoundry.models import ComposerMPTCausalLM
from torch.utils.data import DataLoader

from gpu.rows import Options, Rows
from mosaic_photon.callbacks import OptimizerMonitor

STEPS, TOLERANCE = 4, 1e-4


class Norms(Callback):
    """The parameters' norms at the end of each batch, computed by hand."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def batch_end(self, state: State, logger: Logger) -> None:
        named = list(state.model.named_parameters())
        self.last = {f"l2_norm/param/{name}": float(p.detach().double().norm()) for name, p in named}
        self.last |= {f"l2_norm/grad/{name}": float(p.grad.double().norm()) for name, p in named if p.grad is not None}


def run(options: Options, rows: Rows) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    width = options.pick(256, 32)
    norms = Norms()
    ours = fit(options.device, width, OptimizerMonitor(interval=1), norms)
    theirs = fit(options.device, width, ComposersMonitor(batch_log_interval=1))
    for name, other in {"norms by hand": norms.last, "Composer's monitor": theirs}.items():
        shared = sorted(key for key in ours.keys() & other.keys() if "/moment" not in key or name != "norms by hand")
        if not shared:
            rows.failed(f"against {name}", f"no number in common: {sorted(ours)[:3]}, {sorted(other)[:3]}")
            continue
        worst = max((difference(ours[key], other[key]), key) for key in shared)
        rows.check(f"{len(shared)} numbers against {name}, worst {worst[1]}", worst[0], TOLERANCE)


def difference(given: float, right: float) -> float:
    """Relative; numbers below 1e-12 are rounding."""
    if math.isnan(given) or math.isnan(right):
        return math.nan
    return abs(given - right) / max(abs(right), 1e-12)


def fit(device: str, width: int, *callbacks: Callback) -> dict[str, float]:
    """What is logged at the last of STEPS steps under the names of optimizer monitors."""
    torch.manual_seed(0)
    model = ComposerMPTCausalLM(
        d_model=width, n_heads=4, n_layers=2, expansion_ratio=4, max_seq_len=64, vocab_size=512,
        attn_config={"attn_impl": "torch"}, init_device="cpu", loss_fn="torch_crossentropy",
    )  # fmt: skip
    tokens = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(0))
    samples: Any = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in tokens]
    memory = InMemoryLogger()
    trainer = Trainer(
        model=model, train_dataloader=DataLoader(samples * STEPS, batch_size=4), max_duration=f"{STEPS}ba",
        optimizers=DecoupledAdamW(model.parameters(), lr=1e-3, weight_decay=0.0), callbacks=list(callbacks),
        loggers=memory, device="gpu" if device == "cuda" else "cpu", precision="fp32", progress_bar=False,
    )  # fmt: skip
    trainer.fit()
    trainer.close()
    logged = {name: values[-1][1] for name, values in memory.data.items()}
    return {name: float(value) for name, value in logged.items() if name.startswith(("l2_norm/", "min/", "max/"))}
