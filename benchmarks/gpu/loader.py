"""Batches in pinned memory, and their copies on the device, against the same batches in ordinary memory."""

from __future__ import annotations

from itertools import islice

import torch

from gpu.jobs import data_config
from gpu.rows import Options, Rows
from mosaic_photon.dataloader import build_mosaic_dataloader
from mosaic_photon.job.data_config import load_data_config
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.parts import HuggingFaceTokenizer

BATCHES = 20


def run(options: Options, rows: Rows) -> None:
    pinned, ordinary = (first_batches(options, pin) for pin in (True, False))
    rows.fact("pinned", str(pinned[0].is_pinned()))
    if options.device == "cuda" and not pinned[0].is_pinned():
        rows.failed("pinned memory", "the loader's batches are not pinned")
    for where, batches in {
        "pinned": pinned,
        "on the device": [batch.to(options.device, non_blocking=True) for batch in pinned],
    }.items():
        other = sum(not torch.equal(a.cpu(), b) for a, b in zip(batches, ordinary, strict=True))
        rows.check(f"{BATCHES} batches {where}: share that differs", other / len(ordinary), 0.0)


def first_batches(options: Options, pin: bool) -> list[torch.Tensor]:
    """Inputs and labels of the first batches."""
    job = MosaicJobConfig()
    job.training.seq_len, job.training.local_batch_size, job.training.global_batch_size = 256, 4, -1
    job.model.hf_assets_path = str(options.bundle / "tokenizer")
    config = data_config(options.out / f"loader-{pin}", options.bundle / "shards", pin=pin)
    job.mosaic.dataloader = load_data_config(str(config)).train
    tokenizer = HuggingFaceTokenizer(job.model.hf_assets_path)
    loader = build_mosaic_dataloader(dp_world_size=1, dp_rank=0, tokenizer=tokenizer, job_config=job)
    try:
        batches = list(islice(iter(loader), BATCHES))
    finally:
        loader.close()
    return [tensor for inputs, labels in batches for tensor in (inputs["input"], labels)]
