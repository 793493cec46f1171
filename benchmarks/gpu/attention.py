"""Logits, loss and gradients in float32 against the CPU's, for each way of attending."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torchtitan.models import attention
from torchtitan.models.llama3.model.args import TransformerModelArgs
from torchtitan.models.llama3.model.model import Transformer

from gpu.device import exact_fp32, relative
from gpu.rows import Options, Rows
from mosaic_photon.compat import cpu_flex_attention
from mosaic_photon.models import MPTMuPModelArgs
from mosaic_photon.models.mpt_mup.model import TitanComposerMPTMuP

VOCAB, EOS = 512, 2
TOLERANCE = {"logits": 1e-4, "loss": 1e-5, "gradients": 1e-3}
"""Relative differences; sums in float32 in another order give about 1e-6 of the logits."""

MPT_CASES: dict[str, dict[str, Any]] = {
    "MPT plain": {},
    "MPT rope": {"rope": True},
    "MPT grouped queries": {"attn_type": "grouped_query_attention", "kv_n_heads": 2},
    "MPT documents": {"attn_uses_sequence_id": True, "rope": True},
    "MPT ALiBi": {"alibi": True},
    "MPT window": {"sliding_window_size": 64},
    "MPT window, soft cap": {"sliding_window_size": 64, "attn_logit_softcapping": 20.0},
    "MPT soft cap": {"attn_logit_softcapping": 20.0},
}

Inputs = tuple[Tensor, dict[str, Any]]
"""Tokens [B, S], and what else the model is called with."""


AT_ONCE = 5
"""Processes on a GPU: compiling flex attention in float32 takes a core tens of seconds."""


def run(options: Options, rows: Rows) -> None:
    names = [*MPT_CASES, "Llama 3", "Llama 3 documents"]
    attempt = partial(one, options=options, rows=rows)
    if options.device == "cpu":
        for name in names:
            attempt(name)
        return
    with ProcessPoolExecutor(AT_ONCE, get_context("spawn")) as pool:
        list(pool.map(attempt, names))


def one(name: str, options: Options, rows: Rows) -> None:
    """One case; its failure is a row."""
    exact_fp32()
    width, length = options.pick((128, 512), (64, 128))
    build: Callable[[str], tuple[nn.Module, Inputs]] = partial(
        mpt, width=width, length=length, attn=MPT_CASES.get(name, {})
    )
    if name not in MPT_CASES:
        build = partial(llama, width=width, length=length, flex="documents" in name)
    try:
        compare(name, build, options.device, rows)
    except Exception as error:
        traceback.print_exc()
        rows.failed(name, f"{type(error).__name__}: {error}")


def compare(name: str, build: Callable[[str], tuple[nn.Module, Inputs]], device: str, rows: Rows) -> None:
    """The same weights and tokens on the CPU and on the device."""
    with dense_flex_attention():
        reference, inputs = build("cpu")
        right = results(reference, inputs)
    with dense_flex_attention() if device == "cpu" else untuned_flex_attention():
        model, inputs = build(device)
        model.load_state_dict(reference.state_dict())
        given = results(model, inputs)
    for quantity, tolerance in TOLERANCE.items():
        rows.check(f"{name}: {quantity}", relative(given[quantity], right[quantity]), tolerance)


@contextmanager
def dense_flex_attention() -> Iterator[None]:
    """Meanwhile TorchTitan's flex attention is whole score matrices: on a CPU flex attention has no backward pass."""
    before = attention._compiled_create_block_mask, attention.FlexAttentionWrapper._compiled_flex_attn
    cpu_flex_attention.apply()
    try:
        yield
    finally:
        attention._compiled_create_block_mask, attention.FlexAttentionWrapper._compiled_flex_attn = before


@contextmanager
def untuned_flex_attention() -> Iterator[None]:
    """Meanwhile TorchTitan's flex attention is compiled as it stands: tuning it in float32 takes minutes."""
    before = attention.FlexAttentionWrapper._compiled_flex_attn
    attention.FlexAttentionWrapper._compiled_flex_attn = torch.compile(flex_attention, dynamic=False)
    try:
        yield
    finally:
        attention.FlexAttentionWrapper._compiled_flex_attn = before


def results(model: nn.Module, inputs: Inputs) -> dict[str, list[Tensor]]:
    """Logits, mean loss over the next tokens, and gradients in the order of the parameters."""
    tokens, more = inputs
    logits = model(tokens, **more)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return {"logits": [logits], "loss": [loss], "gradients": gradients}


def tokens_with_documents(length: int) -> Tensor:
    """[2, length] random tokens with an end of a document now and then."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCAB, (2, length), generator=generator)
    tokens[:, 37::53] = EOS
    return tokens


def mpt(device: str, width: int, length: int, attn: dict[str, Any]) -> tuple[nn.Module, Inputs]:
    args = MPTMuPModelArgs(d_model=width, n_heads=4, n_layers=2, vocab_size=VOCAB, max_seq_len=length, attn_config=attn)
    with torch.device(device):
        model = TitanComposerMPTMuP(args)
    tokens = tokens_with_documents(length).to(device)
    documents = torch.cumsum(tokens == EOS, dim=1) - (tokens == EOS).long()
    return model, (tokens, {"sequence_id": documents} if attn.get("attn_uses_sequence_id") else {})


def llama(device: str, width: int, length: int, flex: bool) -> tuple[nn.Module, Inputs]:
    kind = {"attn_type": "flex", "attn_mask_type": "block_causal"} if flex else {}
    args = TransformerModelArgs(
        dim=width, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=VOCAB, max_seq_len=length, multiple_of=64, **kind
    )
    with torch.device(device):
        model = Transformer(args)
        with torch.no_grad():
            model.init_weights()
    tokens = tokens_with_documents(length).to(device)
    if not flex:
        return model, (tokens, {})
    return model, (tokens, {"attention_masks": model.get_attention_masks(tokens, _Tokenizer())})


class _Tokenizer:
    eos_id = EOS
