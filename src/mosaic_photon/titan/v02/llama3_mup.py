"""TorchTitan 0.2's Llama 3 with muP and CompleteP; its own code is used as it stands."""

from typing import Any

import torch
from torch import Tensor, nn
from torchtitan.models.attention import ScaledDotProductAttentionWrapper
from torchtitan.models.llama3 import Transformer
from torchtitan.models.llama3.model.model import TransformerBlock
from torchtitan.protocols.train_spec import TrainSpec

from mosaic_photon.mup import table as rules
from mosaic_photon.mup.table import ParameterScale
from mosaic_photon.names import clean_name
from mosaic_photon.titan.llama3_mup import HIDDEN_STD, Llama3MuPModelArgs, init_factor, scales


def add_mup(spec: TrainSpec, flavor: str) -> None:
    """`Llama3MuPModelArgs` and `Llama3MuPTransformer` take the place of TorchTitan's pair."""
    spec.model_args[flavor] = Llama3MuPModelArgs.of(spec.model_args[flavor])
    spec.model_cls = Llama3MuPTransformer


class ScaledEmbedding(nn.Embedding):
    """An embedding times the input multiplier."""

    multiplier: float = 1.0

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * self.multiplier


class InverseHeadSizeAttention(ScaledDotProductAttentionWrapper):
    """Attention with scores scaled by 1/d_head."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(q, k, v, **{**kwargs, "scale": 1.0 / q.size(-1)})


class MuPTransformerBlock(TransformerBlock):
    """TorchTitan's block with X + m_L^-alpha * F(LN X), and the same init standard deviation in every layer."""

    def __init__(self, layer_id: int, model_args: Llama3MuPModelArgs) -> None:
        super().__init__(layer_id, model_args)
        self.multiplier = rules.residual_multiplier(model_args.parametrization)
        self.weight_init_std = HIDDEN_STD
        if model_args.parametrization.attention_scale:
            self.attention.inner_attention = InverseHeadSizeAttention()

    def forward(self, x: Tensor, freqs_cis: Tensor, attention_masks: Any, positions: Tensor | None = None) -> Tensor:
        attended = self.attention(self.attention_norm(x), freqs_cis, attention_masks, positions)
        x = x + self.multiplier * attended
        return x + self.multiplier * self.feed_forward(self.ffn_norm(x))


class Llama3MuPTransformer(Transformer):
    """TorchTitan's Transformer with the parametrization's multipliers, init and hyper-parameter scales."""

    def __init__(self, model_args: Llama3MuPModelArgs) -> None:
        super().__init__(model_args)
        parametrization = model_args.parametrization
        self.layers = nn.ModuleDict({str(i): MuPTransformerBlock(i, model_args) for i in range(model_args.n_layers)})
        self.tok_embeddings = ScaledEmbedding(model_args.vocab_size, model_args.dim)
        self.tok_embeddings.multiplier = rules.input_multiplier(parametrization)
        self.logit_multiplier = rules.output_multiplier(parametrization)

    @torch.no_grad()
    def init_weights(self, buffer_device: torch.device | None = None) -> None:
        """TorchTitan's init at the base width."""
        super().init_weights(buffer_device)
        for name, parameter in self.named_parameters():
            parameter.mul_(init_factor(clean_name(name), self.model_args.parametrization))

    def forward(self, tokens: Tensor, attention_masks: Any = None, positions: Tensor | None = None) -> Tensor:
        out = super().forward(tokens, attention_masks, positions)
        return out if self.output is None else out * self.logit_multiplier

    def parameter_scales(self) -> dict[str, ParameterScale]:
        """Factors on LR, weight decay and epsilon by parameter name."""
        return scales((name for name, _ in self.named_parameters()), self.model_args.parametrization)
