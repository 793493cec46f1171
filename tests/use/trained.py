"""Small jobs of each kind of model, and checkpoints of them whose weights are all drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

import jobs
from mosaic_photon.checkpoints import description
from mosaic_photon.models.resized import build
from mosaic_photon.use.checkpoint import JobModel, job_model

HEAD = """
[job]
dump_folder = "{out}"
[model]
name = "{name}_mosaic"
flavor = "{flavor}"
hf_assets_path = "{tokenizer}"
[training]
seq_len = 64
[model.overrides]
"""
SMALL = "dim = 64\nn_layers = 2\nn_heads = 4\n"
MPT = "d_model = 64\nn_heads = 4\nn_layers = 2\nvocab_size = 2048\nmax_seq_len = 64\n"
TOKENS = torch.arange(128).view(2, 64) * 13 % 2000


def write_job(folder: Path, name: str, overrides: str, more: str = "", flavor: str = "debugmodel") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"out": folder / "out", "name": name, "flavor": flavor, "tokenizer": jobs.TOKENIZER}
    (folder / "job.toml").write_text(HEAD.format(**given) + overrides + more)
    return folder / "job.toml"


def write_checkpoint(folder: Path, model: JobModel, **more: Any) -> nn.Module:
    """A checkpoint of the job's model with drawn weights, norms and biases too; returns the model."""
    drawn = build(model.spec.model_cls, model.args, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    description.write(str(folder), model.args)
    dcp.save({**drawn.state_dict(), **more}, checkpoint_id=folder, no_dist=True)
    return drawn


def logits(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return model(tokens)


def saved(folder: Path, *job: str, **options: str) -> tuple[JobModel, nn.Module, Path]:
    """A job, a model of it, and a checkpoint of that."""
    model = job_model(str(write_job(folder, *job, **options)))
    checkpoint = folder / "out/checkpoint/step-10"
    return model, write_checkpoint(checkpoint, model), checkpoint
