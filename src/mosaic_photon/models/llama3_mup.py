"""TorchTitan's Llama 3 with muP and CompleteP; its own code is used as it stands.

`Llama3MuPModelArgs` and `Llama3MuPTransformer` take the place of TorchTitan's pair where a job enables `[mup]`.
"""

import dataclasses
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mosaic_photon.errors import ConfigError
from mosaic_photon.mup import table as rules
from mosaic_photon.mup.table import ParameterScale, Parametrization, Role, parameter_scale
from mosaic_photon.names import clean_name
from mosaic_photon.titan.llama3 import (
    ScaledDotProductAttentionWrapper,
    Transformer,
    TransformerBlock,
    TransformerModelArgs,
)

HIDDEN_STD = 0.02
"""TorchTitan's sigma for hidden weights, at the base width."""


@dataclass
class Llama3MuPModelArgs(TransformerModelArgs):
    """TorchTitan's args and the parametrization."""

    mup: dict[str, Any] = field(default_factory=dict)
    """Fields of Parametrization, filled from the job's `[mup]` table."""

    @classmethod
    def of(cls, args: TransformerModelArgs) -> "Llama3MuPModelArgs":
        return cls(**{f.name: getattr(args, f.name) for f in dataclasses.fields(args)})

    @property
    def parametrization(self) -> Parametrization:
        return Parametrization(**self.mup)

    def update_from_config(self, job_config: Any, **kwargs: Any) -> None:
        """TorchTitan's, then `[mup]`.

        Raises:
            ConfigError: a bad `[mup]` table, attention_scale without sdpa, or weights to or from Hugging Face.
        """
        super().update_from_config(job_config, **kwargs)
        table = job_config.mup
        if not table.enabled:
            return
        for name in ("initial_load_in_hf", "last_save_in_hf"):
            if job_config.checkpoint.enable and getattr(job_config.checkpoint, name):
                raise ConfigError(
                    f"checkpoint.{name} = true: Hugging Face's Llama has no place for the multipliers of [mup], so its "
                    "logits would be others; set it to false, or [mup] enabled = false."
                )
        if table.attention_scale and self.attn_type != "sdpa":
            raise ConfigError(f"[mup] attention_scale needs attn_type 'sdpa' in Llama 3, not {self.attn_type!r}.")
        self.mup = asdict(rules.from_table(table, self.dim, self.n_layers))


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
        """TorchTitan's init at the base width: hidden sigma / sqrt(m_N), the head as wide as at the base width."""
        super().init_weights(buffer_device)
        parametrization = self.model_args.parametrization
        hidden = rules.init_std_factor(Role.HIDDEN_WEIGHT, parametrization)
        head = parametrization.m_n**0.5  # TorchTitan's own head sigma is dim^-0.5
        for name, parameter in self.named_parameters():
            role = role_of(clean_name(name))
            if role is Role.HIDDEN_WEIGHT:
                parameter.mul_(hidden)
            elif role is Role.UNEMBEDDING:
                parameter.mul_(head)

    def forward(self, tokens: Tensor, attention_masks: Any = None, positions: Tensor | None = None) -> Tensor:
        out = super().forward(tokens, attention_masks, positions)
        return out if self.output is None else out * self.logit_multiplier

    def parameter_scales(self) -> dict[str, ParameterScale]:
        """Factors on LR, weight decay and epsilon by parameter name, wrappers' prefixes removed."""
        names = [clean_name(name) for name, _ in self.named_parameters()]
        return {name: parameter_scale(role_of(name), self.model_args.parametrization) for name in names}


def role_of(name: str) -> Role:
    """The row of the parametrization's table for a parameter of this model (Llama 3 has no biases)."""
    if name.startswith("layers."):
        return Role.HIDDEN_NORM if name.endswith("_norm.weight") else Role.HIDDEN_WEIGHT
    return {"tok_embeddings": Role.EMBEDDING, "norm": Role.OUTER_NORM, "output": Role.UNEMBEDDING}[name.split(".")[0]]
