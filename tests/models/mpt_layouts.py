"""Run by torchrun with two processes: each layout's init, logits and gradients against the unsharded model's.

Writes {layout: {"init": n parameters that differ, "logits": max error, "gradient": max relative error}} to argv[1].
"""

import contextlib
import json
import sys
import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel

from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.models import MPTMuPModelArgs, TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup import parallelize_mpt, pipeline_mpt
from mosaic_photon.names import clean_name
from mosaic_photon.titan.layouts import ParallelDims

SIZE = {"d_model": 64, "n_heads": 4, "n_layers": 4, "vocab_size": 128, "max_seq_len": 32}
SPLIT = {"fused_qkv": False}
MUP = {"enabled": True, "width": 4.0, "depth": 2.0, "output_multiplier": 3.0}
GQA = {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "rope": True}
NORMS = {"peri_norm": True, "embedding_norm": True}
LAYOUTS = {
    "FSDP, tied": ({"shard": 2}, {}),
    "FSDP, untied, rope, norms, muP": (
        {"shard": 2}, {"tie_word_embeddings": False, "attn_config": {"rope": True}, "mup": MUP} | NORMS
    ),
    "FSDP, selective checkpointing": ({"shard": 2, "ac": "selective"}, {}),
    "FSDP, full checkpointing, alibi": ({"shard": 2, "ac": "full"}, {"attn_config": {"alibi": True}}),
    "FSDP, compile": ({"shard": 2, "compile": True}, {"attn_config": {"rope": True}}),
    "DDP": ({"replicate": 2}, {}),
    "TP, tied": ({"tp": 2}, {"attn_config": SPLIT}),
    "TP, untied, GLU, muP": (
        {"tp": 2},
        {"attn_config": SPLIT, "tie_word_embeddings": False, "ffn_config": {"ffn_type": "mptglu"}, "mup": MUP},
    ),
    "TP, alibi, qk norm, norms": ({"tp": 2}, {"attn_config": SPLIT | {"alibi": True, "qk_gn": True}} | NORMS),
    "TP, GQA, rope, full checkpointing": ({"tp": 2, "ac": "full"}, {"no_bias": True, "attn_config": SPLIT | GQA}),
    "PP": ({"pp": 2}, {"tie_word_embeddings": False, "attn_config": {"rope": True}, "mup": MUP}),
    "PP, documents": ({"pp": 2}, {"tie_word_embeddings": False, "attn_config": {"attn_uses_sequence_id": True}}),
}  # fmt: skip


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sum_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def job_of(layout: dict) -> MosaicJobConfig:
    job = MosaicJobConfig()
    job.training.seq_len, job.training.local_batch_size = 32, 4
    job.training.mixed_precision_param = "float32"
    job.activation_checkpoint.mode = layout.get("ac", "none")
    job.compile.enable, job.compile.backend = layout.get("compile", False), "aot_eager"
    job.parallelism.tensor_parallel_degree = layout.get("tp", 1)
    job.parallelism.pipeline_parallel_degree = layout.get("pp", 1)
    job.parallelism.pipeline_parallel_schedule = "1F1B"
    job.debug.seed = 3
    return job


def compare(layout: dict, changes: dict) -> dict[str, float]:
    rank, world = dist.get_rank(), dist.get_world_size()
    job, args = job_of(layout), MPTMuPModelArgs(**SIZE | changes)
    args.update_from_config(job)
    dims = ParallelDims(
        dp_replicate=layout.get("replicate", 1), dp_shard=layout.get("shard", 1), cp=1, tp=layout.get("tp", 1),
        pp=layout.get("pp", 1), ep=1, etp=1, world_size=world,
    )  # fmt: skip
    reference = TitanComposerMPTMuP(args)
    expected = dict(reference.named_parameters())
    with torch.device("meta"):
        model = TitanComposerMPTMuP(args)
    schedule, parts = None, []
    if "pp" in layout:
        schedule, parts, _, has_last = pipeline_mpt(
            model, dims, job, torch.device("cpu"), args, parallelize_mpt, sum_loss
        )
    else:
        parts = [parallelize_mpt(model, dims, job)]
    for part in parts:
        for module in part.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
        part.to_empty(device="cpu")
        part.init_weights()
        part.train()
    mine = {clean_name(name): p for part in parts for name, p in part.named_parameters()}
    result = {"init": sum(not torch.equal(whole(p.detach()), expected[name]) for name, p in mine.items())}

    generator = torch.Generator().manual_seed(1)
    tokens, labels = torch.randint(128, (2, 4, 32), generator=generator)
    documents = torch.arange(32) // torch.tensor([[5], [9], [11], [16]]) if "pp" in layout else None
    logits = reference(tokens, sequence_id=documents)
    sum_loss(logits, labels).backward()
    data_ranks = world if "shard" in layout or "replicate" in layout else 1
    own = slice(rank * 4 // data_ranks, (rank + 1) * 4 // data_ranks) if data_ranks > 1 else slice(None)
    if schedule is not None:
        losses: list[torch.Tensor] = []
        arguments = () if has_last else (tokens,)
        targets = {"target": labels, "losses": losses} if has_last else {}
        schedule.step(*arguments, sequence_id=documents, **targets)
        result["logits"] = abs(float(sum(losses)) / float(sum_loss(logits, labels)) - 1) if has_last else 0.0
    else:
        with loss_parallel() if "tp" in layout else contextlib.nullcontext():
            out = parts[0](tokens[own])
            sum_loss(out, labels[own]).backward()
        result["logits"] = (whole(out.detach()) - logits[own]).abs().max().item()
    averaged = world if "replicate" in layout else 1  # DDP's own mean; the train spec installs a sum
    errors = [(whole(p.grad) * averaged - expected[name].grad).abs().max() for name, p in mine.items()]
    largest = max(p.grad.abs().max() for p in expected.values())
    return result | {"gradient": (max(errors) / largest).item(), "parameters": len(mine)}


def main() -> None:
    warnings.filterwarnings("ignore")
    dist.init_process_group("gloo")
    results = {name: compare(*layout) for name, layout in LAYOUTS.items()}
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, results)
    if dist.get_rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(everyone, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
