"""llm-foundry's MPT in Composer's Trainer: same weights, batch, precision, clipping and optimizer."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import torch
from composer import Callback, Logger, State, Trainer
from composer.algorithms import GradientClipping

from gpu.device import peak_gib, wait
from gpu.rows import Options
from gpu.trainers import Timed
from mosaic_photon.models import MPTMuPModelArgs
from mosaic_photon.models.mpt_mup.foundry import ComposerMPTMuPCausalLM


class Stopwatch(Callback):
    """Seconds a batch, after a warm-up; the device is waited for at both ends alone."""

    def __init__(self, device: str, warm_up: int) -> None:
        self.device, self.warm_up = device, warm_up
        self.begun = self.ended = 0.0
        self.first_loss: torch.Tensor | None = None

    def after_loss(self, state: State, logger: Logger) -> None:
        if self.first_loss is None:
            self.first_loss = torch.as_tensor(state.loss).detach().float().clone()

    def batch_end(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch) == self.warm_up:
            wait(self.device)
            self.begun = time.perf_counter()

    def fit_end(self, state: State, logger: Logger) -> None:
        wait(self.device)
        self.ended = time.perf_counter()


def fit(
    options: Options, args: MPTMuPModelArgs, weights: dict[str, torch.Tensor], inputs: torch.Tensor, steps: int
) -> Timed:
    """Train `steps` batches after three of warm-up: `inputs` [B, S] over and over.

    Args:
        args: of the model on the other side.
        weights: what it began with, under llm-foundry's names.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    config = args.foundry_config()
    config["attn_config"] = config["attn_config"] | {"attn_impl": "sdpa"}  # its `torch` makes whole score matrices
    model = ComposerMPTMuPCausalLM(**config)
    model.model.load_state_dict(weights, strict=False)
    on_gpu = options.device == "cuda"
    model = model.cuda() if on_gpu else model
    watch = Stopwatch(options.device, warm_up=3)
    samples: Any = [{"input_ids": row, "labels": row} for row in inputs] * (steps + watch.warm_up)
    trainer = Trainer(
        model=model, device="gpu" if on_gpu else "cpu", precision="amp_bf16" if on_gpu else "fp32",
        train_dataloader=torch.utils.data.DataLoader(samples, batch_size=len(inputs), pin_memory=on_gpu),
        optimizers=torch.optim.AdamW(
            model.parameters(), lr=1e-4, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, fused=True
        ),
        max_duration=f"{steps + watch.warm_up}ba", callbacks=[watch], progress_bar=False, log_to_console=False,
        algorithms=[GradientClipping(clipping_type="norm", clipping_threshold=1.0)],
    )  # fmt: skip
    trainer.fit()
    trainer.close()
    logging.disable(logging.NOTSET)
    assert watch.first_loss is not None
    return Timed((watch.ended - watch.begun) / steps, float(watch.first_loss), inputs, peak_gib(options.device))
