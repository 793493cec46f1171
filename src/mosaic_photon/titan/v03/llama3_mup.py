"""TorchTitan 0.3's Llama 3 with muP and CompleteP: the modules of `v02/llama3_mup.py` in 0.3's terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchtitan.models.common import Embedding
from torchtitan.models.llama3.model import Llama3TransformerBlock

from mosaic_photon.mup import table as rules
from mosaic_photon.mup.table import ParameterScale
from mosaic_photon.names import clean_name
from mosaic_photon.titan.llama3_mup import HIDDEN_STD, Llama3MuPModelArgs, init_factor, scales
from mosaic_photon.titan.v03.args import TrainSpec
from mosaic_photon.titan.v03.llama3 import Llama3, Llama3Args
from mosaic_photon.titan.v03.models import cut_normal, widened


def add_mup(spec: TrainSpec, flavor: str) -> None:
    """The flavor's args with the parametrization, and the model that follows it."""
    spec.model_args[flavor] = Llama3MuPModelArgs.of(spec.model_args[flavor])
    spec.model_config = config_of


class ScaledEmbedding(Embedding):
    """An embedding times the input multiplier."""

    @dataclass(kw_only=True, slots=True)
    class Config(Embedding.Config):
        multiplier: float

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.multiplier = config.multiplier

    def forward(self, input: Tensor) -> Tensor:
        """TorchTitan shards arguments by their names."""
        return super().forward(input) * self.multiplier


class MuPTransformerBlock(Llama3TransformerBlock):
    """TorchTitan's block with X + m_L^-alpha * F(LN X), and scores scaled by 1/d_head if the job asks for it."""

    @dataclass(kw_only=True, slots=True)
    class Config(Llama3TransformerBlock.Config):
        multiplier: float
        attention_scale: bool

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.multiplier = config.multiplier
        if config.attention_scale:
            self.attention.scaling = 1.0 / self.attention.head_dim

    def forward(self, x: Tensor, attention_masks: Any, positions: Tensor | None = None) -> Tensor:
        x = x + self.multiplier * self.attention(self.attention_norm(x), attention_masks, positions)
        return x + self.multiplier * self.feed_forward(self.ffn_norm(x))


class Llama3MuP(Llama3):
    """The model with the parametrization's multipliers, init and hyper-parameter scales."""

    @dataclass(kw_only=True, slots=True)
    class Config(Llama3.Config):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.parametrization = config.args.parametrization
        self.logit_multiplier = rules.output_multiplier(self.parametrization)

    @torch.no_grad()
    def init_weights(self, **kwargs: Any) -> None:
        """TorchTitan's init at the base width."""
        super().init_weights(**kwargs)
        for name, parameter in self.named_parameters():
            parameter.mul_(init_factor(clean_name(name), self.parametrization))

    def forward(self, tokens: Tensor, positions: Tensor | None = None, attention_masks: Any = None) -> Tensor:
        out = super().forward(tokens, positions, attention_masks)
        return out if self.lm_head is None else out * self.logit_multiplier

    def parameter_scales(self) -> dict[str, ParameterScale]:
        """Factors on LR, weight decay and epsilon by parameter name."""
        return scales((name for name, _ in self.named_parameters()), self.parametrization)


def config_of(args: Llama3MuPModelArgs, seed: int | None = None) -> Any:
    """0.3's config of the model; its hidden weights have one sigma in all layers."""
    config, parametrization = Llama3Args.titan_config(args, seed), args.parametrization
    factors = {
        "multiplier": rules.residual_multiplier(parametrization),
        "attention_scale": parametrization.attention_scale,
    }
    for layer in config.layers:
        for linear in (layer.attention.wo, layer.feed_forward.w2, layer.feed_forward.w3):
            linear.param_init = cut_normal(HIDDEN_STD)
    config.layers = [widened(MuPTransformerBlock.Config, layer, **factors) for layer in config.layers]
    config.tok_embeddings = widened(
        ScaledEmbedding.Config, config.tok_embeddings, multiplier=rules.input_multiplier(parametrization)
    )
    return widened(Llama3MuP.Config, config)
