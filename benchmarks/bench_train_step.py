"""Tokens per second and peak memory of training steps: llm-foundry + Composer's Trainer, a bare loop, and here.

    python benchmarks/bench_train_step.py [--d-model 768 --n-layers 4 --seq-len 1024 --batch 2 --rounds 5 --block 2]

The same MPT, weights, batch, precision, clipping and optimizer (torch's AdamW, fused) for all:
composer       llm-foundry's MPT with its `torch` attention in one fit() of Composer's Trainer, from batch end to batch
               end, its loader included
bare sdpa      llm-foundry's MPT with this project's `sdpa` attention in a loop of forward, backward, clip, step
here           TitanComposerMPTMuP through the job's own parts: parallelize_fn, loss, optimizer and schedule containers,
               in the order of TorchTitan's train_step
here, compiled the same with `[compile] enable = true`; with --compile only

They take turns in blocks of --block steps within one process, the first block of each being its warm-up; medians. Peak
memory is each one's alone, in a process of its own.
"""

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import mosaic_photon.titan  # noqa: F401  (before TorchTitan)

# isort: split
import torch
import torch.nn.functional as F
from composer import Callback, State, Trainer
from composer.algorithms import GradientClipping
from composer.loggers import Logger
from torch import Tensor, nn
from torchtitan.distributed import ParallelDims
from torchtitan.distributed import utils as dist_utils

from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.models import MPTMuPModelArgs
from mosaic_photon.models.mpt_mup.foundry import ComposerMPTMuPCausalLM, MPTMuPConfig, MPTMuPForCausalLM
from mosaic_photon.models.mpt_mup.state_dict_adapter import to_foundry_name
from mosaic_photon.train_spec import build_train_spec

LR, DECAY, MAX_NORM, SEED = 1e-4, 0.1, 1.0, 1
SIZES = {"d-model": 768, "n-layers": 4, "seq-len": 1024, "batch": 2, "vocab": 8192, "rounds": 5, "block": 2}
Step = Callable[[], float]
"""One training step; returns its loss."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", action="store_true", help="add this project's step with compiled blocks")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the process that measures one contender's memory
    return parser.parse_args()


def job_of(options: argparse.Namespace, compiled: bool) -> MosaicJobConfig:
    job = MosaicJobConfig()
    job.training.seq_len, job.training.local_batch_size = options.seq_len, options.batch
    job.training.max_norm, job.debug.seed = MAX_NORM, SEED
    job.activation_checkpoint.mode = "none"
    job.compile.enable = compiled
    job.optimizer.name, job.optimizer.lr, job.optimizer.weight_decay = "AdamW", LR, DECAY
    job.lr_scheduler.warmup_steps, job.lr_scheduler.decay_ratio = 0, 0.0  # constant, as the others'
    return job


def model_args(options: argparse.Namespace) -> MPTMuPModelArgs:
    args = MPTMuPModelArgs(
        d_model=options.d_model, n_heads=options.d_model // 64, n_layers=options.n_layers,
        vocab_size=options.vocab, max_seq_len=options.seq_len,
    )  # fmt: skip
    args.update_from_config(job_of(options, compiled=False))
    return args


def batch(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Random tokens [B, S], and llm-foundry's labels for them: the next token, none for the last."""
    tokens = torch.randint(options.vocab, (options.batch, options.seq_len), generator=torch.Generator().manual_seed(0))
    labels = torch.roll(tokens, -1, dims=1)
    labels[:, -1] = -100
    return tokens, labels


def here(options: argparse.Namespace, compiled: bool) -> Step:
    """TorchTitan's Trainer.train_step on one rank, with the parts of this project's TrainSpec."""
    spec, job = build_train_spec("mpt_mup_mosaic"), job_of(options, compiled)
    dims = ParallelDims(dp_replicate=1, dp_shard=1, cp=1, tp=1, pp=1, ep=1, etp=1, world_size=1)
    with torch.device("meta"):
        model: Any = spec.model_cls(model_args(options))
    model = spec.parallelize_fn(model, dims, job)
    model.to_empty(device="cpu")
    model.init_weights()
    model.train()
    optimizers = spec.build_optimizers_fn([model], job.optimizer, dims)
    schedulers = spec.build_lr_schedulers_fn(optimizers, job.lr_scheduler, 10_000)
    loss_fn = spec.build_loss_fn(job, parallel_dims=dims)
    tokens, labels = batch(options)

    def step() -> float:
        optimizers.zero_grad()
        loss = loss_fn(model(tokens), labels) / (labels != -100).sum().float()
        loss.backward()
        dist_utils.clip_grad_norm_(list(model.parameters()), MAX_NORM, foreach=True)
        optimizers.step()
        schedulers.step()
        return loss.item()

    return step


def initial_weights(options: argparse.Namespace) -> dict[str, Tensor]:
    """What `here` starts from, under llm-foundry's names."""
    model = build_train_spec("mpt_mup_mosaic").model_cls(model_args(options))
    return {to_foundry_name(name): parameter.detach() for name, parameter in model.named_parameters()}


def foundry_config(options: argparse.Namespace, attn_impl: str) -> dict[str, Any]:
    config = model_args(options).foundry_config()
    return config | {"attn_config": config["attn_config"] | {"attn_impl": attn_impl}}


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, betas=(0.9, 0.95), eps=1e-8, fused=True)


def bare_sdpa(options: argparse.Namespace) -> Step:
    model = MPTMuPForCausalLM(MPTMuPConfig(**foundry_config(options, "sdpa"))).train()
    model.load_state_dict(initial_weights(options), strict=False)
    optimizer, (tokens, labels) = adamw(model), batch(options)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM, foreach=True)
        optimizer.step()
        return loss.item()

    return step


class Turns(Callback):
    """Times Composer's batches, and after each block of them gives the others their turn."""

    def __init__(self, block: int, others: dict[str, Step]) -> None:
        self.block, self.others = block, others
        self.seconds: dict[str, list[float]] = {name: [] for name in ("composer", *others)}
        self.losses: dict[str, list[float]] = {name: [] for name in ("composer", *others)}

    def fit_start(self, state: State, logger: Logger) -> None:
        self.start = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        self.losses["composer"].append(float(state.loss))
        self.seconds["composer"].append(time.perf_counter() - self.start)
        if int(state.timestamp.batch) % self.block == 0:
            for name, step in self.others.items():
                for _ in range(self.block):
                    start = time.perf_counter()
                    self.losses[name].append(step())
                    self.seconds[name].append(time.perf_counter() - start)
        self.start = time.perf_counter()


def fit(options: argparse.Namespace, turns: Turns) -> None:
    """One fit() of rounds + 1 blocks."""
    model = ComposerMPTMuPCausalLM(**foundry_config(options, "torch"))
    model.model.load_state_dict(initial_weights(options), strict=False)
    batches = (options.rounds + 1) * options.block
    samples: Any = [{"input_ids": row, "labels": row} for row in batch(options)[0]] * batches
    Trainer(
        model=model, train_dataloader=torch.utils.data.DataLoader(samples, batch_size=options.batch), device="cpu",
        optimizers=adamw(model), max_duration=f"{batches}ba", callbacks=[turns], progress_bar=False,
        log_to_console=False, algorithms=[GradientClipping(clipping_type="norm", clipping_threshold=MAX_NORM)],
    ).fit()  # fmt: skip


def builders(options: argparse.Namespace) -> dict[str, Callable[[], Step]]:
    """Composer's rivals."""
    rivals = {"bare sdpa": lambda: bare_sdpa(options), "here": lambda: here(options, compiled=False)}
    if options.compile:
        rivals["here, compiled"] = lambda: here(options, compiled=True)
    return rivals


def peak_gib(name: str) -> float:
    """Peak resident memory of a process that runs one contender for two blocks."""
    command = [sys.executable, __file__, *sys.argv[1:], "--rounds", "1", "--only", name]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(json.loads(printed.splitlines()[-1]))


def run_alone(options: argparse.Namespace) -> None:
    if options.only == "composer":
        fit(options, Turns(options.block, {}))
    else:
        step = builders(options)[options.only]()
        for _ in range(2 * options.block):
            step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def report(options: argparse.Namespace, turns: Turns, peaks: dict[str, float]) -> None:
    print(f"d_model {options.d_model}, {options.n_layers} layers, batch {options.batch} x {options.seq_len}, fp32, "
          f"{torch.get_num_threads()} threads, {options.rounds} rounds of {options.block}, "
          f"torch {torch.__version__}")  # fmt: skip
    timed = {name: statistics.median(seconds[options.block :]) for name, seconds in turns.seconds.items()}
    for name, seconds in timed.items():
        losses = turns.losses[name]
        print(f"{name:14s} {options.batch * options.seq_len / seconds:9.1f} tokens/s   peak {peaks[name]:.2f} GiB"
              f"   loss {losses[0]:.4f} -> {losses[-1]:.4f}")  # fmt: skip
    for name in [name for name in timed if name.startswith("here")]:
        print(f"{name} / composer  {timed['composer'] / timed[name]:.2f}")
        print(f"{name} / bare sdpa {timed['bare sdpa'] / timed[name]:.2f}")


def main() -> None:
    options = arguments()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if options.only:
        run_alone(options)
        return
    peaks = {name: peak_gib(name) for name in ("composer", *builders(options))}
    turns = Turns(options.block, {name: build() for name, build in builders(options).items()})
    fit(options, turns)
    report(options, turns, peaks)


if __name__ == "__main__":
    main()
