"""The model args of `mpt_mup_mosaic`: llm-foundry's MPT config as a self-checking dataclass; needs no llm-foundry."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.job.layout_checks import check_heads
from mosaic_photon.mup import table as rules
from mosaic_photon.mup.table import Parametrization
from mosaic_photon.titan.spec import BaseModelArgs

ATTN_KEYS = {
    "attn_type": "multihead_attention",
    "attn_impl": "sdpa",
    "attn_pdrop": 0.0,
    "qk_ln": False,
    "qk_gn": False,
    "fused_qkv": True,
    "clip_qkv": None,
    "softmax_scale": None,
    "attn_uses_sequence_id": False,
    "sliding_window_size": -1,
    "attn_logit_softcapping": None,
    "alibi": False,
    "alibi_bias_max": 8,
    "rope": False,
    "rope_theta": 10000,
    "rope_impl": "hf",
    "rope_hf_config": {"type": "no_scaling", "factor": 1.0},
    "kv_n_heads": None,
}
"""Keys of attn_config that are supported here, with defaults; llm-foundry's meaning."""
DEFAULT_ACT_FN = {"name": "gelu", "approximate": "none"}
FFN_KEYS = ("ffn_type", "ffn_hidden_size", "ffn_act_fn")
INIT_KEYS = ("name", "fan_mode", "init_nonlinearity", "init_div_is_residual", "emb_init_std", "emb_init_uniform_lim",
             "init_std", "init_gain")  # fmt: skip


@dataclass
class MPTMuPModelArgs(BaseModelArgs):
    """llm-foundry's MPT config (same names and meaning), peri-norm, embedding norm and the parametrization.

    Raises:
        ConfigError: on construction, for any value that no MPT can have.
    """

    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    expansion_ratio: float = 4
    max_seq_len: int = 2048
    vocab_size: int = 50368
    resid_pdrop: float = 0.0
    emb_pdrop: float = 0.0
    learned_pos_emb: bool = True
    attn_config: dict[str, Any] = field(default_factory=dict)
    """llm-foundry's, with `attn_impl = "sdpa"` the default."""
    ffn_config: dict[str, Any] = field(default_factory=lambda: {"ffn_type": "mptmlp"})
    init_config: dict[str, Any] = field(default_factory=dict)
    """llm-foundry's. With muP: `init_std` and `emb_init_std`; the scheme is fixed."""
    logit_scale: float | str | None = None
    no_bias: bool = False
    norm_type: str = "low_precision_layernorm"
    norm_eps: float = 1e-5
    embedding_fraction: float = 1.0
    tie_word_embeddings: bool = True
    final_logit_softcapping: float | None = None
    peri_norm: bool = False
    """Normalise each residual branch's output too (Peri-LN, arXiv 2502.02732)."""
    embedding_norm: bool = False
    """Normalise the embedding before the input multiplier."""
    mup: dict[str, Any] = field(default_factory=dict)
    """Fields of Parametrization. Filled from the job's `[mup]` table where that is enabled."""
    mup_raw: dict[str, Any] = field(default_factory=dict)
    """Alternative: the multipliers as a model config of nanoGPT-mup (mup_width_multiplier, ...) or Photon (a
    `mup_config` table) has them."""

    def __post_init__(self) -> None:
        self._init_seed: int | None = None  # the job's seed; no field, since it is no part of the model
        _check_keys("attn_config", self.attn_config, ATTN_KEYS)
        _check_keys("ffn_config", self.ffn_config, FFN_KEYS)
        _check_keys("init_config", self.init_config, INIT_KEYS)
        _check_keys("mup", self.mup, asdict(Parametrization()))
        _check_keys("mup_raw", self.mup_raw, (*rules.RAW_NAMES, "mup_config"))
        if self.mup and self.mup_raw:
            raise ConfigError("model args have both mup and mup_raw; they say the same thing, keep one.")
        _check_kinds(self.attn_config)
        rope = ATTN_KEYS["rope_hf_config"] | self.attn_config.get("rope_hf_config", {})
        self.attn_config = {**ATTN_KEYS, **self.attn_config, "rope_hf_config": rope}
        if self.mup_raw:
            self.mup, self.mup_raw = asdict(rules.read_raw_names(dict(self.mup_raw)) or Parametrization()), {}
        self._check_choices()
        self._check_sizes()
        if self.attn_config["alibi"] or self.attn_config["rope"]:
            self.learned_pos_emb = False

    def _check_sizes(self) -> None:
        for name in ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value <= 0:
                raise ConfigError(f"model args: {name} is {value!r}; it must be a positive integer.")
        if self.d_model % self.n_heads:
            below = max(n for n in range(1, self.n_heads + 1) if self.d_model % n == 0)
            raise ConfigError(
                f"model args: d_model {self.d_model} is not divisible by n_heads {self.n_heads}; "
                f"n_heads = {below} would divide it."
            )
        for name in ("kv_n_heads", "ffn_hidden_size"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"model args: {name} is {getattr(self, name)}; it must be positive.")
        if self.n_heads % self.kv_n_heads:
            raise ConfigError(
                f"model args: n_heads {self.n_heads} is not divisible by attn_config.kv_n_heads {self.kv_n_heads}."
            )

    def _check_choices(self) -> None:
        attn = self.attn_config
        _check_choice("attn_config.attn_type", attn["attn_type"],
                      ("multihead_attention", "multiquery_attention", "grouped_query_attention"))  # fmt: skip
        _check_choice("attn_config.attn_impl", attn["attn_impl"], ("sdpa", "torch"))
        _check_choice("attn_config.rope_impl", attn["rope_impl"], ("hf",))
        _check_choice("ffn_config.ffn_type", self.ffn_config.get("ffn_type", "mptmlp"), ("mptmlp", "mptglu"))
        if attn["attn_type"] == "grouped_query_attention" and attn["kv_n_heads"] is None:
            raise ConfigError("model args: attn_type grouped_query_attention needs attn_config.kv_n_heads.")
        if attn["attn_type"] != "grouped_query_attention" and attn["kv_n_heads"] is not None:
            raise ConfigError(
                f"model args: attn_config.kv_n_heads is {attn['kv_n_heads']}, which only attn_type = "
                f"'grouped_query_attention' has; the attn_type is {attn['attn_type']!r}."
            )
        if self.final_logit_softcapping is not None and self.final_logit_softcapping <= 0:
            raise ConfigError(
                f"model args: final_logit_softcapping is {self.final_logit_softcapping}; it must be positive."
            )
        if attn["alibi"] and attn["rope"]:
            raise ConfigError("model args: alibi and rope are both on; choose one way to encode positions.")
        Parametrization(**self.mup)

    @classmethod
    def function_of(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Model args as a checkpoint has them, defaults written out, without what has no effect beside the rest.

        Raises:
            ConfigError: they are none of an MPT.
        """
        args = cls(**{f.name: saved[f.name] for f in fields(cls) if f.name in saved})
        attn = args.attn_config | {"kv_n_heads": args.kv_n_heads, "softmax_scale": softmax_scale(args)}
        del attn["attn_type"]  # kv_n_heads says it
        if not attn["alibi"]:
            del attn["alibi_bias_max"]
        if not attn["rope"]:
            del attn["rope_theta"], attn["rope_hf_config"]
        elif attn["rope_hf_config"]["type"] == "no_scaling":
            attn["rope_hf_config"] = {"type": "no_scaling"}
        ffn = {"ffn_type": args.ffn_config.get("ffn_type", "mptmlp"), "ffn_act_fn": act_fn(args)}
        return asdict(args) | {"attn_config": attn, "ffn_config": ffn, "logit_scale": own_logit_scale(args)}

    @property
    def kv_n_heads(self) -> int:
        return kv_heads(self)

    @property
    def init_seed(self) -> int:
        """Seed of the init: the job's, else the process's, which TorchTitan makes the same on all ranks of a stage."""
        return torch.initial_seed() if self._init_seed is None else self._init_seed

    @property
    def parametrization(self) -> Parametrization:
        return Parametrization(**self.mup)

    def foundry_config(self) -> dict[str, Any]:
        """Keyword arguments of MPTMuPConfig."""
        config = {k: v for k, v in asdict(self).items() if k not in ("_enforced", "mup_raw")}
        if config["attn_config"]["kv_n_heads"] is None:
            del config["attn_config"]["kv_n_heads"]
        if not config["init_config"]:
            del config["init_config"]
        return config

    def update_from_config(self, job_config: Any, **_: Any) -> None:
        """Read the sequence length and `[mup]` from the job, and refuse what this model cannot run.

        Raises:
            ConfigError: a parallelism or sequence length that this model cannot have, a bad `[mup]` table, or model
                args that llm-foundry refuses.
        """
        seq_len = job_config.training.seq_len
        if seq_len > self.max_seq_len:
            if self.learned_pos_emb:
                raise ConfigError(
                    f"training.seq_len is {seq_len}, but the model's learned positions end at max_seq_len = "
                    f"{self.max_seq_len}; set [model.overrides] max_seq_len = {seq_len}, or use rope or alibi."
                )
            self.max_seq_len = seq_len
        self._check_parallelism(job_config.parallelism)
        self._init_seed = job_config.debug.seed
        table = job_config.mup
        if table.enabled:
            if self.mup.get("enabled"):
                raise ConfigError("[mup] is enabled, but the model args bring multipliers of their own; keep one.")
            self.mup = asdict(rules.from_table(table, self.d_model, self.n_layers))
        from mosaic_photon.models.mpt_mup.foundry import check_model

        check_model(self)

    def _check_parallelism(self, parallelism: Any) -> None:
        tp, pp = parallelism.tensor_parallel_degree, parallelism.pipeline_parallel_degree
        if tp > 1:
            self._check_tensor_parallel(tp)
        if pp > 1 and self.tie_word_embeddings:
            raise ConfigError(
                f"pipeline_parallel_degree is {pp}, but the head is tied to the embedding, which lives on another "
                "stage; set [model.overrides] tie_word_embeddings = false."
            )
        if parallelism.context_parallel_degree > 1:
            self._check_context_parallel()

    @property
    def attends_by_flex(self) -> bool:
        """Whether, on a GPU, flex attention is what the model attends by."""
        attn = self.attn_config
        biased = attn["alibi"] or attn["attn_uses_sequence_id"] or attn["sliding_window_size"] != -1
        return bool(biased and attn["attn_impl"] == "sdpa" and not attn["attn_pdrop"])

    def _check_tensor_parallel(self, tp: int) -> None:
        attn = self.attn_config
        if attn["fused_qkv"]:
            raise ConfigError(
                f"tensor_parallel_degree is {tp}, but attn_config.fused_qkv is true: a column-wise shard of the fused "
                "Wqkv would mix queries, keys and values; set attn_config.fused_qkv = false."
            )
        if attn["qk_ln"]:
            raise ConfigError("tensor parallelism would split the norm of attn_config.qk_ln; use qk_gn, per head.")
        check_heads(tp, {"n_heads": self.n_heads, "kv_n_heads": self.kv_n_heads})
        for name, size in {"d_model": self.d_model, "feed-forward size": self.ffn_hidden_size}.items():
            if size % tp:
                raise ConfigError(f"{name} is {size}, not divisible by tensor_parallel_degree {tp}.")

    def _check_context_parallel(self) -> None:
        plain = {"alibi": False, "attn_uses_sequence_id": False, "sliding_window_size": -1, "attn_pdrop": 0,
                 "attn_logit_softcapping": None, "attn_impl": "sdpa"}  # fmt: skip
        for name, value in plain.items():
            if self.attn_config[name] != value:
                raise ConfigError(
                    f"context parallelism runs plain causal attention only; attn_config.{name} is "
                    f"{self.attn_config[name]!r}, but must be {value!r}."
                )

    @property
    def ffn_hidden_size(self) -> int:
        return self.ffn_config.get("ffn_hidden_size") or int(self.d_model * self.expansion_ratio)

    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
        """Parameters, and training FLOPs per token by llm-foundry's formula (`ComposerMPTCausalLM.flops_per_batch`).

        6 N_active + 12 n_layers d_model seq_len: forward and twice that for backward; an untied embedding is a look-up
        and not counted; causality is not discounted.
        """
        nparams = sum(p.numel() for p in model.parameters())
        active = nparams - (0 if self.tie_word_embeddings else self.vocab_size * self.d_model)
        return nparams, 6 * active + 12 * self.n_layers * self.d_model * seq_len


def kv_heads(model: Any) -> int:
    """Key and value heads; `model` is its args or its config."""
    multiquery = model.attn_config["attn_type"] == "multiquery_attention"
    return 1 if multiquery else int(model.attn_config.get("kv_n_heads") or model.n_heads)


def logit_scale(model: Any) -> float:
    """llm-foundry's logit_scale times the parametrization's output multiplier; `model` is its args or its config."""
    return own_logit_scale(model) * rules.output_multiplier(model.parametrization)


def own_logit_scale(model: Any) -> float:
    """llm-foundry's logit_scale alone; `model` is its args or its config."""
    given = model.logit_scale
    return model.d_model**-0.5 if given == "inv_sqrt_d_model" else 1.0 if given is None else float(given)


def act_fn(model: Any) -> dict[str, Any]:
    """The feed-forward's function, with its keyword arguments; `model` is its args or its config."""
    given: dict[str, Any] = model.ffn_config.get("ffn_act_fn") or DEFAULT_ACT_FN
    return DEFAULT_ACT_FN | given if given.get("name") == DEFAULT_ACT_FN["name"] else given


def softmax_scale(model: Any) -> float:
    """The factor on attention scores: the one given, else the parametrization's; `model` is its args or its config."""
    given: float | None = model.attn_config["softmax_scale"]
    return given or rules.softmax_scale(model.d_model // model.n_heads, model.parametrization)


def _check_keys(table: str, given: Any, known: Any) -> None:
    if not isinstance(given, dict):
        raise ConfigError(f"model args: {table} is {given!r}; it must be a table.")
    for key in given:
        if key not in known:
            raise ConfigError(f"model args: {table} has no key {key!r}.{nearest(key, known)}")


def _check_kinds(attn: dict[str, Any]) -> None:
    """Each value of attn_config has its default's type; where the default is unset, it is a number."""
    for key, value in attn.items():
        default = ATTN_KEYS[key]
        kind: Any = type(default) if isinstance(default, (bool, str, dict)) else (int, float)
        right = isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)
        if not right and not (value is None and default is None):
            word = {bool: "true or false", str: "a string", dict: "a table"}.get(kind, "a number")
            raise ConfigError(f"model args: attn_config.{key} is {value!r}; it must be {word}.")


def _check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ConfigError(f"model args: {name} is {given!r}.{nearest(given, known)}")
