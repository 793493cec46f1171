"""llm-foundry's MPT with muP, CompleteP, peri-norm and embedding norm: the Hugging Face and Composer side.

Nothing of llm-foundry's forward pass is copied. Its own slots carry the multipliers: the dropout after each residual
branch and after the embedding becomes a `ScaledOutput`, the logits have `logit_scale`, the scores `softmax_scale`,
and the init's `_is_residual` divisor is 1/sqrt(m_N).
"""

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from llmfoundry.layers_registry import attention_implementations, norms, param_init_fns
from llmfoundry.models.layers.blocks import MPTBlock
from llmfoundry.models.layers.layer_builders import build_norm
from llmfoundry.models.mpt import ComposerMPTCausalLM, MPTConfig, MPTForCausalLM, MPTModel
from torch import Tensor, nn
from transformers import GenerationMixin

from mosaic_photon.errors import ConfigError, ask_upstream, nearest
from mosaic_photon.models.mpt_mup.attention import sdpa_attention
from mosaic_photon.mup import table as rules
from mosaic_photon.mup.table import Parametrization, Role

if "sdpa" not in attention_implementations.get_all():  # the package runs from a source tree without its entry points
    attention_implementations.register("sdpa", func=sdpa_attention)


REFUSALS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError, AssertionError, ImportError)
"""How llm-foundry refuses a config."""


class ScaledOutput(nn.Module):
    """dropout -> norm -> multiplier, on [B, S, d_model]; the order matters: a norm after the multiplier undoes it."""

    def __init__(self, dropout: float, norm: nn.Module | None, multiplier: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = norm
        self.multiplier = multiplier

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.multiplier == 1.0 else x * self.multiplier


def _norm(name: str, size: int, eps: float, device: str | None) -> nn.Module:
    return build_norm(name=name.lower(), normalized_shape=size, eps=eps, device=device)


class MPTMuPConfig(MPTConfig):
    """MPTConfig with `mup` (fields of Parametrization), `peri_norm` and `embedding_norm`.

    The raw names of nanoGPT-mup and Photon (`mup_width_multiplier`, `mup_config`, `use_peri_norm`, ...) are read too.
    """

    model_type = "mpt_mup"

    def __init__(
        self,
        mup: dict[str, Any] | None = None,
        peri_norm: bool = False,
        embedding_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        raw = rules.read_raw_names(kwargs)
        if mup and raw is not None:
            raise ConfigError("the model config has mup and raw multiplier names; they say the same thing, keep one.")
        self.mup = dataclasses.asdict(raw or Parametrization(**(mup or {})))
        self.peri_norm = kwargs.pop("use_peri_norm", peri_norm)
        self.embedding_norm = kwargs.pop("use_embedding_norm", embedding_norm)
        kwargs["attn_config"] = {"attn_impl": "sdpa", **(kwargs.get("attn_config") or {})}
        if self.parametrization.enabled:
            kwargs["init_config"] = mup_init_config(kwargs.get("init_config"), self.parametrization)
            if self.parametrization.attention_scale and kwargs["attn_config"].get("softmax_scale") is not None:
                raise ConfigError("attn_config.softmax_scale and mup's attention_scale both set the scale; keep one.")
        super().__init__(**kwargs)

    @property
    def parametrization(self) -> Parametrization:
        return Parametrization(**self.mup)

    def _validate_config(self) -> None:
        # llm-foundry knows two implementations; sdpa has the constraints of "torch".
        with torch_attention_name(self):
            super()._validate_config()


def mup_init_config(given: dict[str, Any] | None, parametrization: Parametrization) -> dict[str, Any]:
    """llm-foundry's init with one sigma for every weight, divided by sqrt(m_N) in the blocks.

    Raises:
        ConfigError: another scheme than `baseline_` is asked for; those scale with the layer's own width already. Or
            another division, of the residual branches' last layers by depth.
    """
    config = {"name": "baseline_", "init_std": 0.02, **(given or {})}
    if config["name"] != "baseline_":
        raise ConfigError(f"muP fixes the init: init_config.name is {config['name']!r}, but must be 'baseline_'.")
    divisor = 1 / rules.init_std_factor(Role.HIDDEN_WEIGHT, parametrization)
    asked = config.get("init_div_is_residual", divisor)
    if isinstance(asked, bool) or asked != divisor:
        raise ConfigError(f"muP fixes the init: init_config.init_div_is_residual is {asked!r}; leave it out.")
    return {**config, "init_div_is_residual": divisor}


@contextmanager
def torch_attention_name(config: MPTConfig) -> Iterator[None]:
    """While llm-foundry looks, `sdpa` is called `torch`, whose contract it keeps."""
    name = config.attn_config.get("attn_impl")
    if name == "sdpa":
        config.attn_config["attn_impl"] = "torch"
    try:
        yield
    finally:
        config.attn_config["attn_impl"] = name


class MPTMuPBlock(MPTBlock):
    """An MPTBlock: x + m_L^-alpha * PeriNorm(F(Norm(x))), for attention and feed-forward."""

    def __init__(self, *, parametrization: Parametrization, peri_norm: bool, **block_args: Any) -> None:
        super().__init__(**block_args)
        multiplier = rules.residual_multiplier(parametrization)

        if peri_norm or multiplier != 1.0:
            sizes = [block_args[key] for key in ("norm_type", "d_model", "norm_eps", "device")]
            for name in ("resid_attn_dropout", "resid_ffn_dropout"):
                norm = _norm(*sizes) if peri_norm else None
                setattr(self, name, ScaledOutput(block_args["resid_pdrop"], norm, multiplier))
        if parametrization.enabled:  # llm-foundry's init divides what is marked by `init_div_is_residual`
            for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
                linear.__dict__["_is_residual"] = True


class MPTMuPModel(MPTModel):
    """MPTModel of MPTMuPBlocks."""

    def __init__(self, config: MPTMuPConfig) -> None:
        self.block_attn_impl = config.attn_config["attn_impl"]
        with torch_attention_name(config):
            super().__init__(config)

    @property
    def block_class(self) -> type[MPTMuPBlock]:
        return MPTMuPBlock

    def construct_blocks(self, config: MPTMuPConfig) -> nn.ModuleList:
        """Also sets what comes before the blocks, so that llm-foundry initialises it with the rest."""
        multiplier = rules.input_multiplier(config.parametrization)
        if config.embedding_norm or multiplier != 1.0:
            sizes = (config.norm_type, config.d_model, config.norm_eps, config.init_device)
            norm = _norm(*sizes) if config.embedding_norm else None
            self.emb_drop = ScaledOutput(config.emb_pdrop, norm, multiplier)
        return super().construct_blocks(config)

    def extract_block_args(self, block_args: dict[str, Any]) -> dict[str, Any]:
        block_args = super().extract_block_args(copy.deepcopy(block_args))
        if block_args.get("fuse_norm_attn_norm"):
            raise ConfigError("fuse_norm_attn_norm has no place for the residual multipliers; remove it.")
        config, attn = self.config, block_args["attn_config"]
        attn["attn_impl"] = self.block_attn_impl
        d_head = config.head_dim or config.d_model // config.n_heads
        if config.parametrization.enabled and config.parametrization.attention_scale:
            attn["softmax_scale"] = rules.softmax_scale(d_head, config.parametrization)
        block_args["parametrization"] = config.parametrization
        return block_args


class MPTMuPForCausalLM(MPTForCausalLM, GenerationMixin):
    """MPTForCausalLM whose logits are multiplied by output_multiplier / m_N."""

    config_class = MPTMuPConfig

    logit_scale: float | None

    def __init__(self, config: MPTMuPConfig) -> None:
        super().__init__(config)
        multiplier = rules.output_multiplier(config.parametrization)
        if multiplier != 1.0:
            scale: float | None = self.logit_scale
            self.logit_scale = multiplier if scale is None else scale * multiplier

    @property
    def backbone_model_class(self) -> type[MPTMuPModel]:
        return MPTMuPModel


def check_model(args: Any) -> None:
    """Have llm-foundry judge an MPTMuPModelArgs: its config's checks, its registries, and one block built on meta.

    Raises:
        ConfigError: a name that llm-foundry does not know, or whatever it refuses.
    """
    init_name = args.init_config.get("name")
    names = {"norm_type": (args.norm_type.lower(), norms), "init_config.name": (init_name, param_init_fns)}
    for field, (given, registry) in names.items():
        if given is not None and given not in registry.get_all():
            raise ConfigError(f"model args: {field} is {given!r}.{nearest(given, registry.get_all())}")
    ask = partial(ask_upstream, "model args: llm-foundry refuses them", REFUSALS)
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        config = ask(MPTMuPConfig, init_device="meta", **args.foundry_config() | {"n_layers": 1})
        ask(MPTMuPForCausalLM, config)
        init = param_init_fns.get(config.init_config["name"])
        for module in (nn.Linear(2, 2), nn.Embedding(2, 2)):
            ask(init, module=module, n_layers=1, d_model=2, **config.init_config)


class ComposerMPTMuPCausalLM(ComposerMPTCausalLM):
    """The Composer model, `mpt_mup_causal_lm` in llm-foundry's model registry."""

    def __init__(self, loss_fn: str | dict[str, Any] = "torch_crossentropy", **kwargs: Any) -> None:
        super().__init__(loss_fn=loss_fn, **kwargs)
        if self.config.parametrization.enabled:
            warnings.warn(
                "mup is enabled: Composer trains with muP's forward pass and init, but not with its learning rates, "
                "weight decay and epsilon per parameter. Give the optimizer groups of your own.",
                stacklevel=2,
            )

    @property
    def model_class(self) -> type[MPTMuPForCausalLM]:
        return MPTMuPForCausalLM

    @property
    def config_class(self) -> type[MPTMuPConfig]:
        return MPTMuPConfig
