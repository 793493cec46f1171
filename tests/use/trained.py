"""Small jobs of each kind of model, and checkpoints of them whose weights are all drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

import jobs
from mosaic_photon import titan
from mosaic_photon.checkpoints import description
from mosaic_photon.models.resized import build
from mosaic_photon.use.checkpoint import JobModel, check_weights, job_model

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
QWEN3 = SMALL + "n_kv_heads = 2\nhead_dim = 32\nhidden_dim = 128\nrope_theta = 1000.0\n"
QWEN3_MOE = QWEN3 + "moe_inter_dim = 32\nmoe_args = {num_experts = 8, top_k = 2}\n"
DEEPSEEK_V3 = (
    SMALL
    + """
inter_dim = 128
moe_inter_dim = 32
norm_eps = 1e-6
q_lora_rank = 32
kv_lora_rank = 32
qk_nope_head_dim = 16
qk_rope_head_dim = 8
v_head_dim = 16
[model.overrides.moe_args]
score_func = "sigmoid"
route_norm = true
route_scale = 2.5
top_k = 2
num_expert_groups = 2
num_limited_groups = 1
"""
)
STRETCHED = DEEPSEEK_V3.replace("inter_dim = 128", "inter_dim = 128\noriginal_seq_len = 16\nrope_factor = 8.0", 1)
TOKENS = torch.arange(128).view(2, 64) * 13 % 2000


def write_job(folder: Path, name: str, overrides: str, more: str = "", flavor: str = "debugmodel") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"out": folder / "out", "name": name, "flavor": flavor, "tokenizer": jobs.TOKENIZER}
    (folder / "job.toml").write_text(HEAD.format(**given) + overrides + more)
    return folder / "job.toml"


def write_checkpoint(folder: Path, model: JobModel, **more: Any) -> nn.Module:
    """A checkpoint of the job's model with drawn weights, norms and biases too; returns the model."""
    for workaround in titan.release().CPU_WORKAROUNDS:
        workaround.apply()
    drawn = build(model.spec.model_cls, model.args, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in drawn.state_dict().items():
            if "qwen3" not in model.job.model.name or "expert_bias" not in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
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


def opened(model: JobModel, folder: str | Path) -> nn.Module:
    """The job's model with the checkpoint's weights."""
    built = build(model.spec.model_cls, model.args, seed=0)
    check_weights(model, str(folder)).read_into(built.state_dict())
    return built.eval()
