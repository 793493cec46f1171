"""What TorchTitan 0.3's models have in common when a job trains them: 0.2.2's weights, names and model args."""

from __future__ import annotations

import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torchtitan.models.common import Embedding, Linear, RMSNorm
from torchtitan.models.common.config_utils import make_ffn_config

from mosaic_photon.compat.layout_independent_init import ParameterPart, initialised_by_parts, job_seed
from mosaic_photon.errors import ConfigError
from mosaic_photon.titan.v03.args import BaseModelArgs
from mosaic_photon.titan.v03.names import EXPERTS, HEAD, QKV, Names

STD = 0.02
"""Of a hidden weight at first; TorchTitan's own."""


@dataclass
class DecoderArgs(BaseModelArgs):
    """Those of a language model of TorchTitan's."""

    max_seq_len: int = 0
    attn_type: str = "sdpa"

    @property
    def attends_by_flex(self) -> bool:
        """Whether flex attention is what the model attends by."""
        return self.attn_type in ("sdpa", "flex")

    def update_from_config(self, job_config: Any, **kwargs: Any) -> None:
        """The positions are those of the job's sequences."""
        seq_len = job_config.training.seq_len
        if seq_len > self.max_seq_len:
            logging.getLogger().warning(f"Sequence length {seq_len} exceeds original maximum {self.max_seq_len}.")
        self.max_seq_len = seq_len

    @abstractmethod
    def titan_config(self, seed: int | None = None) -> Any:
        """0.3's config of the model. seed: the job's; None draws one.

        Raises:
            ConfigError: 0.3's model has nothing for one of the args.
        """


class JobModel(nn.Module):
    """Mixed into a model of TorchTitan's: its weights depend on the seed and their names, which are a job's."""

    config: Any
    names = Names(HEAD, QKV, EXPERTS)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model_args = config.args
        self.names.keep(self)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """torch's, by the job's names."""
        for name, parameter in super().named_parameters(*args, **kwargs):
            yield self.names.job(name), parameter

    def init_weights(self, **kwargs: Any) -> None:
        """TorchTitan's, unless who calls it has seeded the parameters. Collective where the job has no seed."""
        if any(isinstance(parameter, ParameterPart) for parameter in self.parameters()):
            super().init_weights(**kwargs)  # type: ignore[misc]
            return
        with initialised_by_parts(self, job_seed(self.config.seed)):
            super().init_weights(**kwargs)  # type: ignore[misc]

    def forward(self, tokens: Tensor, positions: Tensor | None = None, attention_masks: Any = None) -> Any:
        """TorchTitan's; with tokens [B, S] alone each row is one document, as 0.2.2 takes them."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2]).contiguous()
            attention_masks = self.get_attention_masks(positions)  # type: ignore[operator]
        return super().forward(tokens, positions, attention_masks)


class CountedByName:
    """Mixed into a model's config: TorchTitan counts experts by its own names of parameters."""

    __slots__ = ()

    def get_nparams_and_flops(self, model: Any, seq_len: int) -> tuple[int, int]:
        """TorchTitan's count."""
        named = [(model.names.titan(name), parameter) for name, parameter in model.named_parameters()]
        counted: tuple[int, int] = super().get_nparams_and_flops(  # type: ignore[misc]
            SimpleNamespace(named_parameters=lambda: named), seq_len
        )
        return counted


class JobAdapter:
    """Mixed into TorchTitan's adapter to and from Hugging Face's format: of a state dict with a job's names."""

    names = JobModel.names

    def __init__(self, args: DecoderArgs, hf_assets_path: str | None) -> None:
        super().__init__(args.titan_config(), hf_assets_path)  # type: ignore[call-arg]

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Names and layout of Hugging Face's."""
        named = {self.names.titan(name): value for name, value in state_dict.items()}
        converted: dict[str, Any] = super().to_hf(named)  # type: ignore[misc]
        return converted

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        """Names and layout of a job's."""
        converted = super().from_hf(hf_state_dict)  # type: ignore[misc]
        return {self.names.job(name): value for name, value in converted.items()}


def attention_kind(args: Any, *known: str) -> str:
    """What computes attention; 0.2.2's "sdpa" is flex attention with the same mask.

    Raises:
        ConfigError: `attn_type` is neither "sdpa" nor one of the model's `known`.
    """
    kind: str = args.attn_type
    if kind not in ("sdpa", *known):
        names = ", ".join(map(repr, known))
        raise ConfigError(f"the model's attn_type = {kind!r}: TorchTitan 0.3 has 'sdpa', {names} for it.")
    return "flex" if kind == "sdpa" else kind


def ends(args: Any, norm_eps: float | None) -> dict[str, Any]:
    """The fields of a model's config beside its layers."""
    head_std = args.dim**-0.5
    return {
        "args": args,
        "dim": args.dim,
        "vocab_size": args.vocab_size,
        "tok_embeddings": Embedding.Config(
            num_embeddings=args.vocab_size, embedding_dim=args.dim, param_init={"weight": nn.init.normal_}
        ),
        "norm": norm(args.dim, norm_eps),
        "lm_head": Linear.Config(
            in_features=args.dim, out_features=args.vocab_size, param_init=cut_normal(head_std, 3 * head_std)
        ),
    }


def norms(args: Any) -> dict[str, Any]:
    """Those of a layer."""
    return {"attention_norm": norm(args.dim, args.norm_eps), "ffn_norm": norm(args.dim, args.norm_eps)}


def norm(dim: int, eps: float | None) -> Any:
    """eps: None is the smallest that the numbers' dtype knows beside 1."""
    return RMSNorm.Config(normalized_shape=dim, eps=eps, param_init={"weight": nn.init.ones_})


def cut_normal(std: float, cut: float = 2.0, name: str = "weight") -> dict[str, Any]:
    """How a linear layer begins: normal, cut off on both sides."""
    return {name: partial(nn.init.trunc_normal_, std=std, a=-cut, b=cut)}


def last_std(depth: int) -> float:
    """Of what writes into the residual stream, which begins the smaller, the deeper it stands."""
    return STD / (2 * depth) ** 0.5


def feed_forward(dim: int, hidden_dim: int, last: float) -> Any:
    """last: the standard deviation of what writes into the residual stream."""
    inits = {"w1_param_init": cut_normal(STD), "w2w3_param_init": cut_normal(last)}
    return make_ffn_config(dim=dim, hidden_dim=hidden_dim, **inits)


def widened(config_cls: Any, config: Any, **more: Any) -> Any:
    """A config of a class with more fields."""
    return config_cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)}, **more)
