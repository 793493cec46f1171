"""What bfloat16 costs in each part of the MPT, beside llm-foundry on the same weights.

`python tests/mpt_precision.py` prints the table of docs/mpt.md. Both models begin from weights that bfloat16 holds,
so an error is one of the computation: against llm-foundry in float32 (`attn_impl = "torch"`).
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from llmfoundry.models.mpt import MPTConfig, MPTForCausalLM
from torch import Tensor, nn

from mosaic_photon.models import MPTMuPModelArgs, TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup.state_dict_adapter import to_foundry_name

VOCABULARY = 256
SIZE = {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": VOCABULARY, "max_seq_len": 1024}
SIZE["init_config"] = {"name": "baseline_", "init_std": 0.08}
SPLIT_GQA = {"attn_type": "grouped_query_attention", "kv_n_heads": 2}
TORCH = {"attn_impl": "torch"}
WINDOW, CAPPED = {"sliding_window_size": 64}, {"attn_logit_softcapping": 2.0}


@dataclass(frozen=True)
class Case:
    """A row: what is changed of SIZE, and over how many tokens it is measured."""

    changes: dict[str, Any]
    tokens: int = 256
    documents: bool = False


def attention(tokens: int = 256, documents: bool = False, **config: Any) -> Case:
    return Case({"attn_config": config}, tokens, documents)


CASES = {
    "attention, `sdpa`; low_precision_layernorm": attention(),
    "attention, `torch`": attention(**TORCH),
    "grouped heads, qk norm": attention(**SPLIT_GQA, qk_gn=True),
    "ALiBi, `sdpa`": attention(1024, alibi=True),
    "ALiBi, `torch`": attention(1024, alibi=True, **TORCH),
    "ALiBi, window": attention(1024, alibi=True, **WINDOW),
    "ALiBi, capped scores": attention(1024, alibi=True, **CAPPED),
    "ALiBi, documents": attention(1024, documents=True, alibi=True, attn_uses_sequence_id=True),
    "rope": attention(1024, rope=True),
    "window": attention(**WINDOW),
    "capped scores": attention(**CAPPED),
    "layernorm": Case({"norm_type": "layernorm"}),
    "rmsnorm": Case({"norm_type": "rmsnorm"}),
    "low_precision_rmsnorm": Case({"norm_type": "low_precision_rmsnorm"}),
    "untied head, scaled logits": Case({"tie_word_embeddings": False, "logit_scale": 0.3}),
    "capped logits": Case({"final_logit_softcapping": 3.0}),
}


@dataclass(frozen=True)
class Errors:
    """Of one model: mean |difference| of logits and of a token's loss, and the relative one of all gradients."""

    logits: float
    """In the part of the sequence, of eight, where it is largest."""
    loss: float
    gradient: float

    def __str__(self) -> str:
        return f"{self.logits:.4f} / {self.loss:.4f} / {self.gradient:.3f}"


@dataclass
class Outcome:
    """What one pass through a model gives, in float32."""

    logits: Tensor
    losses: Tensor
    gradient: Tensor

    def against(self, exact: Outcome) -> Errors:
        logits = (self.logits - exact.logits).abs().mean(-1)[0].unflatten(0, (8, -1)).mean(-1).max()
        distance = (self.gradient - exact.gradient).norm() / exact.gradient.norm()
        return Errors(logits.item(), (self.losses - exact.losses).abs().mean().item(), distance.item())


def pair(changes: dict[str, Any]) -> tuple[TitanComposerMPTMuP, MPTForCausalLM]:
    """Ours and llm-foundry's, in float32, with the same weights, all of them numbers of bfloat16."""
    args = MPTMuPModelArgs(**SIZE | changes)
    args._init_seed = 0
    config = {key: value for key, value in args.foundry_config().items()}
    for key in ("mup", "peri_norm", "embedding_norm"):
        del config[key]
    ours, theirs = (
        TitanComposerMPTMuP(args),
        MPTForCausalLM(MPTConfig(**config | {"attn_config": config["attn_config"] | TORCH})),
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(parameter.bfloat16())
    theirs.load_state_dict({to_foundry_name(name): p for name, p in ours.state_dict().items()})
    return ours, theirs


def outcome(model: nn.Module, case: Case, mode: str) -> Outcome:
    """Forward and backward pass; mode: float32, autocast (as under DDP) or weights in bfloat16 (as under FSDP).

    In this order: to bfloat16 goes llm-foundry's table of rotations too, and does not come back.
    """
    torch.manual_seed(1)
    tokens, labels = torch.randint(VOCABULARY, (2, 1, case.tokens))
    inputs = {"sequence_id": (torch.arange(case.tokens) // 200)[None]} if case.documents else {}
    model.to(torch.bfloat16 if mode == "weights" else torch.float32).zero_grad()
    with torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext():
        if isinstance(model, TitanComposerMPTMuP):
            logits, names = model(tokens, **inputs), to_foundry_name
            losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")  # TorchTitan's
        else:
            logits, names = model(tokens, **inputs, attention_mask=torch.ones_like(tokens)).logits, str
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    losses.mean().backward()
    gradients = {names(name): p.grad for name, p in model.named_parameters()}
    flat = [gradients[name].float().flatten() for name in sorted(gradients)]
    return Outcome(logits.detach().float(), losses.detach().float(), torch.cat(flat))


def measure(case: Case) -> dict[str, tuple[Errors, Errors]]:
    """mode -> the errors of ours and of llm-foundry's."""
    ours, theirs = pair(case.changes)
    exact = outcome(theirs, case, "float32")
    return {
        mode: (outcome(ours, case, mode).against(exact), outcome(theirs, case, mode).against(exact))
        for mode in ("autocast", "weights")
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    print("| | autocast: here | llm-foundry | bf16 weights: here | llm-foundry |\n|---|---|---|---|---|")
    for name, case in CASES.items():
        errors = measure(case)
        print(f"| {name} | " + " | ".join(str(error) for both in errors.values() for error in both) + " |", flush=True)


if __name__ == "__main__":
    main()
