"""MPT under TorchTitan's model protocol.

The layers are those of the model in `ComposerMPTMuPCausalLM`, regrouped under the names that TorchTitan's pipeline,
checkpointing and compilation know: `tok_embeddings`, `layers`, `norm`, `output`.
Shapes: B batch, S sequence, M d_model, V vocabulary.
"""

import warnings
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from llmfoundry.layers_registry import param_init_fns
from torch import Tensor, nn

from mosaic_photon.compat.layout_independent_init import initialised_by_parts
from mosaic_photon.errors import ConfigError
from mosaic_photon.models.mpt_mup.args import MPTMuPModelArgs
from mosaic_photon.models.mpt_mup.attention import attention_bias, in_dtype
from mosaic_photon.models.mpt_mup.foundry import MPTMuPConfig, MPTMuPForCausalLM
from mosaic_photon.mup.table import ParameterScale, Role, parameter_scale
from mosaic_photon.names import clean_name
from mosaic_photon.titan.spec import ModelProtocol


def build_foundry_model(args: MPTMuPModelArgs, device: str) -> MPTMuPForCausalLM:
    """llm-foundry's model with these args; initialised unless `device` is "meta"."""
    return MPTMuPForCausalLM(MPTMuPConfig(init_device=device, **args.foundry_config()))


class Embeddings(nn.Module):
    """Token and learned position embedding, their norm, multiplier and dropout: [B, S] -> [B, S, M]."""

    def __init__(self, wte: nn.Module, wpe: nn.Module | None, output: nn.Module, fraction: float) -> None:
        super().__init__()
        self.wte, self.wpe, self.output = wte, wpe, output
        self.fraction = fraction

    def forward(self, tokens_BS: Tensor, positions_BS: Tensor) -> Tensor:
        x_BSM = self.wte(tokens_BS)
        if self.wpe is not None:
            x_BSM = x_BSM + self.wpe(positions_BS)
        if self.fraction != 1:  # GLM-130B's gradient shrink
            x_BSM = x_BSM * self.fraction + x_BSM.detach() * (1 - self.fraction)
        return self.output(x_BSM)


class Head(nn.Module):
    """[B, S, M] -> [B, S, V]: the untied projection or the token embedding, then llm-foundry's scale and cap."""

    def __init__(
        self, lm_head: nn.Module | None, wte: nn.Embedding, scale: float | None, softcap: float | None
    ) -> None:
        super().__init__()
        self.lm_head = lm_head
        self.scale, self.softcap = scale, softcap
        self.embedding = [wte] if lm_head is None else []
        """In a list, so that it is no child: the embedding owns the weight, a second name would save it twice."""

    def forward(self, x_BSM: Tensor) -> Tensor:
        logits_BSV = F.linear(x_BSM, self.embedding[0].weight) if self.lm_head is None else self.lm_head(x_BSM)
        if self.scale is not None:
            logits_BSV = logits_BSV * self.scale
        if self.softcap is not None:
            logits_BSV = self.softcap * torch.tanh(logits_BSV / self.softcap)
        return logits_BSV


class TitanComposerMPTMuP(ModelProtocol):
    """The TorchTitan model. Build on any device (or meta), then `init_weights` sets every parameter and buffer."""

    def __init__(self, model_args: MPTMuPModelArgs) -> None:
        super().__init__(model_args)
        self.model_args = model_args
        foundry = build_foundry_model(model_args, device="meta")
        body = foundry.transformer
        self.foundry_config: MPTMuPConfig = foundry.config
        wpe = body.wpe if model_args.learned_pos_emb else None
        self.tok_embeddings = Embeddings(body.wte, wpe, body.emb_drop, body.embedding_fraction)
        self.layers = nn.ModuleDict({str(i): block for i, block in enumerate(body.blocks)})
        self.norm = body.norm_f
        self.output = Head(foundry.lm_head, body.wte, foundry.logit_scale, foundry.final_logit_softcapping)
        self.sequence_shards = 1
        """Tensor parallelism splits activations between blocks along the sequence into this many parts."""
        self.head_range: tuple[int, int] = (0, model_args.n_heads)
        """The query heads that this rank computes."""
        device = torch.empty(0).device
        if device.type != "meta":
            self.to_empty(device=device)
            self.init_weights()

    def init_weights(self, buffer_device: torch.device | None = None) -> None:
        """llm-foundry's init, from (seed, parameter name) alone: each layout has its part of the whole."""
        config = self.foundry_config
        init = param_init_fns.get(config.init_config["name"])
        with initialised_by_parts(self, self.model_args.init_seed), torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # llm-foundry's slicing
            for module in self.modules():
                if next(module.parameters(recurse=False), None) is not None:  # it would take all below a module
                    init(module=module, n_layers=config.n_layers, d_model=config.d_model, **config.init_config)

    @cached_property
    def _rotary(self) -> Any:
        """llm-foundry's rotary embedding; outside the module tree because its buffer is rebuilt, never loaded."""
        from llmfoundry.models.mpt.modeling_mpt import gen_rotary_embedding

        config, attn = self.foundry_config, self.foundry_config.attn_config
        with torch.device("cpu"):
            return gen_rotary_embedding(
                rope_impl=attn["rope_impl"], rope_theta=attn["rope_theta"], rope_dail_config={},
                rope_hf_config=attn["rope_hf_config"], max_seq_len=config.max_seq_len, d_model=config.d_model,
                n_heads=config.n_heads, head_dim=config.head_dim,
            )  # fmt: skip

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        sequence_id: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, S, V] of tokens [B, S]; on later pipeline stages activations [B, S, M] in and out.

        Args:
            positions: [1 or B, S], where they are not 0..S-1 (context parallelism).
            sequence_id: [B, S], the document of each token; read only with attn_config.attn_uses_sequence_id.
            attention_mask: [B, S], false at (right) padding.

        Raises:
            ConfigError: documents are to be masked, but the batch does not say where they are.
        """
        n_tokens = tokens.size(1) * (1 if self.tok_embeddings is not None else self.sequence_shards)
        if positions is None:
            positions = torch.arange(n_tokens, device=tokens.device)[None]
        x_BSM = self.tok_embeddings(tokens, positions) if self.tok_embeddings is not None else tokens
        context = self._block_inputs(n_tokens, positions, sequence_id, attention_mask)
        attn = self.foundry_config.attn_config
        fused = attn["attn_impl"] == "sdpa" and attn["attn_logit_softcapping"] is None
        if fused and isinstance(context["attn_bias"], Tensor):  # cast here, once for all blocks
            context["attn_bias"] = in_dtype(context["attn_bias"], x_BSM.dtype)
        for block in self.layers.values():
            x_BSM, _, _ = block(x_BSM, **context)
        x_BSM = self.norm(x_BSM) if self.norm is not None else x_BSM
        return self.output(x_BSM) if self.output is not None else x_BSM

    def _block_inputs(
        self, n_tokens: int, positions: Tensor, sequence_id: Tensor | None, attention_mask: Tensor | None
    ) -> dict[str, Any]:
        """What every block shares, computed once per forward pass (llm-foundry does some of it in each block)."""
        attn, device = self.foundry_config.attn_config, positions.device
        if attn["attn_uses_sequence_id"] and sequence_id is None:
            raise ConfigError(
                "attn_config.attn_uses_sequence_id is true, but the batch has no sequence_id; set eos_token_id or "
                "bos_token_id in the data config's dataset, which says where documents end."
            )
        rope = None
        if attn["rope"]:
            tables = self._rotary(torch.empty(0, device=device), positions)
            rope = {"impl": "hf", "rotary_emb": given_tables, "offset_info": tables, "seq_len": n_tokens}
        # Flex attention has no dropout, and llm-foundry's own implementations take a tensor.
        flex = device.type == "cuda" and attn["attn_impl"] == "sdpa" and not attn["attn_pdrop"]
        bias = attention_bias(
            n_tokens, device, self._alibi_slopes(device),
            sequence_id if attn["attn_uses_sequence_id"] else None, attention_mask,
            window=attn["sliding_window_size"], flex=flex,
        )  # fmt: skip
        return {"attn_bias": bias, "rotary_emb_w_meta_info": rope, "is_causal": bias is None}

    def _alibi_slopes(self, device: torch.device) -> Tensor | None:
        from llmfoundry.models.layers.attention import gen_slopes

        attn = self.foundry_config.attn_config
        if not attn["alibi"]:
            return None
        slopes_H = gen_slopes(self.model_args.n_heads, attn["alibi_bias_max"], device=device, return_1d=True)
        return slopes_H[slice(*self.head_range)]

    def parameter_scales(self) -> dict[str, ParameterScale]:
        """Factors on LR, weight decay and epsilon by parameter name, wrappers' prefixes removed."""
        parametrization = self.model_args.parametrization
        return {
            name: parameter_scale(role_of(name), parametrization)
            for name in (clean_name(wrapped) for wrapped, _ in self.named_parameters())
        }


def given_tables(x: Tensor, position_ids: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Stands where a block would compute cos and sin: the caller has done so once, and passes them as positions."""
    cos, sin = position_ids
    return cos.to(x.dtype), sin.to(x.dtype)


def role_of(name: str) -> Role:
    """The row of the parametrization's table for a parameter of this model."""
    parts = name.split(".")
    in_block = parts[0] == "layers"
    is_norm = "norm" in parts[-2] or parts[-2] in ("q_ln", "k_ln")
    if is_norm:
        return Role.HIDDEN_NORM if in_block else Role.OUTER_NORM
    if in_block:
        return Role.HIDDEN_BIAS if parts[-1] == "bias" else Role.HIDDEN_WEIGHT
    return Role.UNEMBEDDING if parts[0] == "output" else Role.EMBEDDING
