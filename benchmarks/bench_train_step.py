"""Tokens per second of one training step: llm-foundry + Composer's Trainer, a bare loop, and TorchTitan's step here.

    python benchmarks/bench_train_step.py [--d-model 768 --n-layers 4 --seq-len 1024 --batch 2 --rounds 5]

The same MPT, weights, batch, AdamW and precision in all three, alternating within one run; medians and ratios:
composer   llm-foundry's MPT with its `torch` attention in Composer's Trainer
bare sdpa  llm-foundry's MPT with this project's `sdpa` attention in a loop of forward, backward, clip, step
here       TitanComposerMPTMuP in the trainer's step: forward, backward, clip, step through its optimizer container
"""

import argparse
import logging
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mosaic_photon.compat  # noqa: F401  (before TorchTitan)

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtitan.distributed import utils as dist_utils

from mosaic_photon.models import MPTMuPModelArgs, TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup.foundry import ComposerMPTMuPCausalLM, MPTMuPConfig, MPTMuPForCausalLM

LR = 1e-4


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "d-model": 768,
        "n-layers": 4,
        "seq-len": 1024,
        "batch": 2,
        "rounds": 5,
        "vocab": 8192,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def foundry_model(args: MPTMuPModelArgs, attn_impl: str) -> MPTMuPForCausalLM:
    config = args.foundry_config()
    config["attn_config"] = config["attn_config"] | {"attn_impl": attn_impl}
    return MPTMuPForCausalLM(MPTMuPConfig(**config)).train()


def bare_loop(model: nn.Module, tokens: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, foreach=True)

    def step() -> None:
        out = model(tokens)
        logits = out if isinstance(out, Tensor) else out.logits
        F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()

    return step


def titan_step(model: nn.Module, tokens: Tensor, labels: Tensor) -> Callable[[], None]:
    """What TorchTitan's Trainer.train_step does on one rank: summed loss, division by tokens, its own clipping."""
    from torchtitan.components.loss import cross_entropy_loss

    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss = cross_entropy_loss(model(tokens), labels) / (labels != -100).sum()
        loss.backward()
        dist_utils.clip_grad_norm_(list(model.parameters()), 1.0, foreach=True)
        optimizer.step()

    return step


def composer_steps(args: MPTMuPModelArgs, tokens: Tensor, attn_impl: str = "torch") -> Callable[[], None]:
    """One call: a Composer Trainer's batch; the Trainer lives on between calls."""
    from composer import Trainer

    config = args.foundry_config()
    config["attn_config"] = config["attn_config"] | {"attn_impl": attn_impl}
    model = ComposerMPTMuPCausalLM(**config)
    samples: Any = [{"input_ids": row, "labels": row} for row in tokens] * 4096
    trainer = Trainer(
        model=model, train_dataloader=torch.utils.data.DataLoader(samples, batch_size=len(tokens)), device="cpu",
        optimizers=torch.optim.AdamW(model.parameters(), lr=LR, foreach=True), max_duration="1ba",
        progress_bar=False, log_to_console=False, algorithms=clipping(),
    )  # fmt: skip
    return lambda: trainer.fit(duration="1ba", reset_time=False)


def clipping() -> list[object]:
    from composer.algorithms import GradientClipping

    return [GradientClipping(clipping_type="norm", clipping_threshold=1.0)]


@contextmanager
def quiet() -> Iterator[None]:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    yield


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    args = MPTMuPModelArgs(
        d_model=options.d_model, n_heads=options.d_model // 64, n_layers=options.n_layers,
        vocab_size=options.vocab, max_seq_len=options.seq_len,
    )  # fmt: skip
    tokens = torch.randint(options.vocab, (options.batch, options.seq_len))
    labels = torch.roll(tokens, -1, dims=1)
    labels[:, -1] = -100
    with quiet():
        contenders = {
            "composer": composer_steps(args, tokens),
            "bare sdpa": bare_loop(foundry_model(args, "sdpa"), tokens, labels),
            "here": titan_step(TitanComposerMPTMuP(args), tokens, labels),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(options.rounds + 1):  # the first warms up
            for name, step in contenders.items():
                start = time.perf_counter()
                step()
                if round_ > 0:
                    times[name].append(time.perf_counter() - start)
    report(options, {name: options.batch * options.seq_len / statistics.median(t) for name, t in times.items()})


def report(options: argparse.Namespace, speed: dict[str, float]) -> None:
    print(f"d_model {options.d_model}, {options.n_layers} layers, batch {options.batch} x {options.seq_len}, fp32, "
          f"{torch.get_num_threads()} threads, {options.rounds} rounds, torch {torch.__version__}")  # fmt: skip
    for name, rate in speed.items():
        print(f"{name:11s} {rate:9.1f} tokens/s")
    print(f"here / composer  {speed['here'] / speed['composer']:.2f}")
    print(f"here / bare sdpa {speed['here'] / speed['bare sdpa']:.2f}")
    print(f"peak RSS of all three together {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
