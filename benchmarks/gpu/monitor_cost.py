"""What OptimizerMonitor adds to a step of MPT 125m, beside Composer's, in this project's trainer and in Composer's."""

from __future__ import annotations

import logging
import statistics
import warnings
from typing import Any

import torch
from composer import Callback, Trainer
from composer.callbacks import OptimizerMonitor as ComposersMonitor
from composer.optim import DecoupledAdamW

from gpu.composer_peer import Stopwatch
from gpu.rows import Options, Rows
from gpu.trainers import TOKEN_IDS
from mosaic_photon.callbacks import OptimizerMonitor
from mosaic_photon.models.mpt_mup.foundry import ComposerMPTMuPCausalLM

ROUNDS = 2


def run(options: Options, rows: Rows) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    monitors: dict[str, Any] = {
        "none": lambda: Callback(),
        "Composer's, every batch": lambda: ComposersMonitor(batch_log_interval=1),
        "ours, every batch": lambda: OptimizerMonitor(interval=1),
        "ours, every 10 batches": lambda: OptimizerMonitor(interval=10),
    }
    taken: dict[str, list[float]] = {name: [] for name in monitors}
    for _ in range(options.pick(ROUNDS, 1)):
        for name, build in monitors.items():
            taken[name].append(step_seconds(options, build()))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    plain = medians.pop("none")
    rows.figure("step without a monitor", plain * 1e3, "ms")
    for name, value in medians.items():
        rows.figure(name, value / plain - 1, "of the step", "<= 0.01" if "10 batches" in name else "")


def step_seconds(options: Options, monitor: Callback) -> float:
    """Seconds a batch in a fresh Trainer of Composer's."""
    width, length, layers = options.pick((768, 1024, 12), (32, 64, 2))
    torch.manual_seed(0)
    model = ComposerMPTMuPCausalLM(
        d_model=width, n_heads=width // 32, n_layers=layers, expansion_ratio=4, max_seq_len=length,
        vocab_size=options.pick(50368, 2048), attn_config={"attn_impl": "sdpa"}, init_device="cpu",
        loss_fn="torch_crossentropy",
    )  # fmt: skip
    on_gpu = options.device == "cuda"
    model = model.cuda() if on_gpu else model
    batch, steps = options.pick((16, 30), (2, 4))
    watch = Stopwatch(options.device, warm_up=options.pick(11, 1))  # beyond the first report, which loads kernels
    samples: Any = [{"input_ids": row, "labels": row} for row in torch.randint(3, TOKEN_IDS, (batch, length))]
    trainer = Trainer(
        model=model, device="gpu" if on_gpu else "cpu", precision="amp_bf16" if on_gpu else "fp32",
        train_dataloader=torch.utils.data.DataLoader(samples * (steps + watch.warm_up), batch_size=batch),
        optimizers=DecoupledAdamW(model.parameters(), lr=1e-4, weight_decay=0.0),
        max_duration=f"{steps + watch.warm_up}ba", callbacks=[monitor, watch], progress_bar=False, log_to_console=False,
    )  # fmt: skip
    trainer.fit()
    trainer.close()
    return (watch.ended - watch.begun) / steps
