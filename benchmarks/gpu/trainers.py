"""Trainers of both sides in this process: this project's, stock TorchTitan's, Composer's; stepped and timed alike."""

from __future__ import annotations

import dataclasses
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming import MDSWriter

from gpu.device import peak_gib, wait
from gpu.jobs import data_config
from gpu.rows import Options
from mosaic_photon import train_spec
from mosaic_photon.job.load import load_job
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.parts import BaseDataLoader
from mosaic_photon.titan.spec import get_train_spec
from mosaic_photon.titan.v02.spec import put
from mosaic_photon.titan.v02.trainer import MosaicTrainer, Trainer, build_trainer
from mosaic_photon.train.loop import parts_of
from mosaic_photon.train.stop import GracefulStop
from mosaic_photon.train_spec import check_job, data_of_job
from mosaic_photon.train_with_mosaic import prepare_process

TOKEN_IDS = 1000
SAMPLES = 512

JOB = """
[job]
dump_folder = "{out}"
[model]
name = "{name}"
flavor = "{flavor}"
hf_assets_path = "{tokenizer}"
[model.overrides]
{overrides}
[optimizer]
name = "AdamW"
implementation = "fused"
lr = 1e-4
eps = 1e-8
beta1 = 0.9
beta2 = 0.95
weight_decay = 0.1
[lr_scheduler]
warmup_steps = 0
decay_ratio = 0.0
[training]
steps = 100000
local_batch_size = {batch}
seq_len = {seq_len}
max_norm = 1.0
mixed_precision_param = "{precision}"
[activation_checkpoint]
mode = "none"
[compile]
enable = {compiled}
[metrics]
log_freq = 100000
[debug]
seed = 17
"""


@dataclass(frozen=True)
class Setting:
    """What is trained, and on what; the same for every contender."""

    name: str
    """TrainSpec."""
    flavor: str
    overrides: dict[str, Any]
    batch: int
    seq_len: int
    compiled: bool


@dataclass
class Timed:
    """What stepping a contender gave."""

    seconds: float
    """A step, on average over all that were timed, the device waited for at their begin and end alone."""
    first_loss: float
    first_inputs: torch.Tensor
    """Of the first batch, [B, S]."""
    peak_gib: float
    loader_s: float = 0.0
    """Of a step, in which the next batch was waited for."""
    flops: float = 0.0
    """Of a token, forward and backward, by the model's own formula."""

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.first_inputs.numel() / self.seconds


def write_samples(options: Options, seq_len: int) -> Path:
    """Shards of random tokens, seq_len + 1 a sample; written once."""
    folder = options.out / f"random-{seq_len}"
    if not (folder / "train" / "index.json").exists():
        tokens = np.random.default_rng(0).integers(3, TOKEN_IDS, (SAMPLES, seq_len + 1)).astype(np.uint16)
        with MDSWriter(out=str(folder / "train"), columns={"tokens": f"ndarray:uint16:{seq_len + 1}"}) as shards:
            for row in tokens:
                shards.write({"tokens": row})
    return folder


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def job_of(options: Options, setting: Setting, *flags: str) -> MosaicJobConfig:
    """The job config of this setting, as the command line would read it."""
    folder = options.out / "throughput"
    data = data_config(folder, write_samples(options, setting.seq_len), val=False)
    text = JOB.format(
        out=folder / "out", tokenizer=options.bundle / "tokenizer", name=setting.name, flavor=setting.flavor,
        overrides="\n".join(f"{key} = {toml(value)}" for key, value in setting.overrides.items()),
        batch=setting.batch, seq_len=setting.seq_len, compiled=toml(setting.compiled),
        precision="bfloat16" if options.device == "cuda" else "float32",
    )  # fmt: skip
    (folder / "job.toml").write_text(text)
    job = load_job(str(folder / "job.toml"), str(data), list(flags))
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
    prepare_process(job)
    return job


@contextmanager
def ours(options: Options, setting: Setting, *flags: str) -> Iterator[MosaicTrainer]:
    """This project's trainer, opened as `train_with_mosaic.run` does, without its loop."""
    job = job_of(options, setting, *flags)
    stop = GracefulStop()
    spec = train_spec.spec_of_job(job)
    data = data_of_job(spec, job, check_job(job, spec))
    trainer = build_trainer(job, parts_of(job, spec, data, stop))
    try:
        yield trainer
    finally:
        trainer.close()
        data.close()
        stop.restore()
        leave()


@contextmanager
def stock(options: Options, setting: Setting) -> Iterator[Trainer]:
    """TorchTitan's own trainer of its own model, with batches that cost it nothing: made before it began."""
    job = job_of(options, setting)
    job.model.name = setting.name.removesuffix(train_spec.SUFFIX)
    upstream = get_train_spec(job.model.name)
    args = dataclasses.replace(upstream.model_args[setting.flavor], **setting.overrides)
    spec = dataclasses.replace(
        upstream, model_args={setting.flavor: args}, build_dataloader_fn=lambda **_: Ready(setting),
        build_validator_fn=None,
    )  # fmt: skip
    put(job.model.name, spec)
    trainer = Trainer(job)
    try:
        yield trainer
    finally:
        trainer.close()
        leave()


class Ready(BaseDataLoader):
    """A few batches over and over, in pinned memory."""

    def __init__(self, setting: Setting) -> None:
        tokens = torch.randint(3, TOKEN_IDS, (4, setting.batch, setting.seq_len + 1))
        self.batches = [tokens[:, :, :-1].contiguous(), tokens[:, :, 1:].contiguous()]
        if torch.cuda.is_available():
            self.batches = [batch.pin_memory() for batch in self.batches]

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        while True:
            for inputs, labels in zip(*self.batches, strict=True):
                yield {"input": inputs}, labels

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


def leave() -> None:
    """Give back what a trainer holds, so that the next has the device to itself."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.pop("MASTER_PORT", None)
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def stepper(trainer: Trainer) -> Callable[[], None]:
    """One call, one step, as `Trainer.train` makes it."""
    batches = trainer.batch_generator(trainer.dataloader)

    def step() -> None:
        trainer.step += 1
        trainer.gc_handler.run(trainer.step)
        trainer.train_step(batches)

    return step


def timed(trainer: Trainer, device: str, warm_up: int, steps: int) -> tuple[Timed, Callable[[], None]]:
    """Step a trainer; the time, and how to step it further."""
    step, losses, inputs = stepper(trainer), [], []
    inner = trainer.forward_backward_step

    def first(**facts: Any) -> torch.Tensor:
        inputs.append(facts["input_dict"]["input"].cpu())
        losses.append(inner(**facts).detach())
        trainer.forward_backward_step = inner
        return losses[0]

    trainer.forward_backward_step = first
    for _ in range(warm_up):
        step()
    loading = trainer.metrics_processor.data_loading_times
    loading.clear()
    wait(device)
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    seconds = (time.perf_counter() - begun) / steps
    waited, flops = sum(loading) / steps, trainer.metrics_processor.num_flops_per_token
    return Timed(seconds, float(losses[0]), inputs[0], peak_gib(device), waited, flops), step
