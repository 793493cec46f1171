"""muP and CompleteP: every width- and depth-dependent factor, as pure functions of (m_N, m_L, alpha).

Source: Dey et al. 2025, "Don't be lazy: CompleteP enables compute-efficient deep transformers", Table 1.
m_N = width / base width, m_L = depth / base depth, alpha = depth exponent (1 is CompleteP). All factors are 1 for
the standard parametrization, so code multiplies without asking whether muP is on.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from mosaic_photon.errors import ConfigError, nearest


@dataclass(frozen=True)
class ParameterScale:
    """Factors on the job's hyper-parameters for one parameter; all 1 is the standard parametrization.

    A model offers them as `parameter_scales() -> dict[str, ParameterScale]`, keyed by the parameter's name.
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    """Meant for a decay that is multiplied by the learning rate; others ignore it unless it is 0."""
    eps: float = 1.0


class Role(StrEnum):
    """What a parameter is to the parametrization; a row of the table."""

    EMBEDDING = "embedding"
    HIDDEN_WEIGHT = "hidden weight"
    HIDDEN_BIAS = "hidden bias"
    HIDDEN_NORM = "norm in a block"
    OUTER_NORM = "norm outside the blocks"
    UNEMBEDDING = "unembedding"


@dataclass(frozen=True)
class Parametrization:
    """Sizes relative to the base model and the switches that go with them.

    Raises:
        ConfigError: a multiplier is no positive number, depth_alpha is outside [0, 1], or a switch is no bool.
    """

    enabled: bool = False
    width: float = 1.0
    """m_N = d_model / base_width."""
    depth: float = 1.0
    """m_L = n_layers / base_depth."""
    depth_alpha: float = 1.0
    """Depth exponent in [0, 1]; 0 scales width only."""
    attention_scale: bool = False
    """Scale attention scores by 1/d_head instead of 1/sqrt(d_head)."""
    input_multiplier: float = 1.0
    output_multiplier: float = 1.0
    scale_hidden_lr: bool = True
    """nanoGPT-mup's and Photon's switch: False leaves the hidden learning rates alone."""
    scale_eps: bool = True
    """Photon's switch: False leaves AdamW's epsilon alone."""

    def __post_init__(self) -> None:
        for name in ("enabled", "attention_scale", "scale_hidden_lr", "scale_eps"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"[mup] {name} is {getattr(self, name)!r}; it must be true or false.")
        for name in ("width", "depth", "input_multiplier", "output_multiplier"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value > 0:
                raise ConfigError(f"[mup] {name} multiplier is {value!r}; it must be a number greater than 0.")
        if not isinstance(self.depth_alpha, (int, float)) or not 0 <= self.depth_alpha <= 1:
            raise ConfigError(
                f"[mup] depth_alpha is {self.depth_alpha!r}; it must be between 0 (width only) and 1 (CompleteP)."
            )

    @property
    def m_n(self) -> float:
        return self.width if self.enabled else 1.0

    @property
    def m_l(self) -> float:
        """1 where depth is not scaled: alpha = 0 is the table's muP column, not the limit of m_L^(alpha-1)."""
        return self.depth if self.enabled and self.depth_alpha > 0 else 1.0


def from_table(table: Any, width: int, depth: int) -> Parametrization:
    """What a job's enabled `[mup]` table (job_config.MuP) means for a model of this d_model and n_layers.

    Raises:
        ConfigError: base_width is missing, a base size is not positive, or a multiplier or the exponent is wrong.
    """
    if table.base_width is None:
        raise ConfigError(f"[mup] base_width is missing: say at which d_model you tuned; this model's is {width}.")
    for name in ("base_width", "base_depth"):
        base = getattr(table, name)
        if base is not None and base <= 0:
            raise ConfigError(f"[mup] {name} is {base}; it must be the positive size of the model you tuned on.")
    return Parametrization(
        enabled=True,
        width=width / table.base_width,
        depth=1.0 if table.base_depth is None else depth / table.base_depth,
        depth_alpha=table.depth_alpha,
        attention_scale=table.attention_scale,
        input_multiplier=table.input_multiplier,
        output_multiplier=table.output_multiplier,
    )


def init_std_factor(role: Role, p: Parametrization) -> float:
    """Factor on the base model's init standard deviation: variance sigma^2 / m_N for hidden weights, else sigma^2."""
    return p.m_n**-0.5 if role is Role.HIDDEN_WEIGHT else 1.0


def residual_multiplier(p: Parametrization) -> float:
    """Factor on both residual branches, X + m_L^-alpha F(LN X); applied after a norm on the branch's output."""
    return p.m_l**-p.depth_alpha


def input_multiplier(p: Parametrization) -> float:
    """Factor on the embedding, after an embedding norm."""
    return p.input_multiplier if p.enabled else 1.0


def output_multiplier(p: Parametrization) -> float:
    """Factor on the logits: X W^T / m_N, times the user's own."""
    return p.output_multiplier / p.m_n if p.enabled else 1.0


def softmax_scale(d_head: int, p: Parametrization) -> float:
    """Factor on attention scores: 1/d_head where muP's attention scale is on, else 1/sqrt(d_head)."""
    return 1.0 / d_head if p.enabled and p.attention_scale else d_head**-0.5


def on_the_function(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Of a Parametrization's fields those that shape what a model computes; none where all that do are 1."""
    p = Parametrization(**fields)
    multipliers = residual_multiplier(p), input_multiplier(p), output_multiplier(p)
    if multipliers == (1.0, 1.0, 1.0) and not (p.enabled and p.attention_scale):
        return {}
    without_effect = {"scale_hidden_lr", "scale_eps"}
    if residual_multiplier(p) == 1.0:
        without_effect |= {"depth", "depth_alpha"}
    return {name: value for name, value in asdict(p).items() if name not in without_effect}


def parameter_scale(role: Role, p: Parametrization) -> ParameterScale:
    """LR, weight decay (where multiplied by the LR) and epsilon of one parameter."""
    if not p.enabled:
        return ParameterScale()
    in_block = role in (Role.HIDDEN_WEIGHT, Role.HIDDEN_BIAS, Role.HIDDEN_NORM)
    depth_lr = p.m_l ** (p.depth_alpha - 1) if in_block else 1.0
    width_lr = 1 / p.m_n if role is Role.HIDDEN_WEIGHT else 1.0
    lr = depth_lr * width_lr if p.scale_hidden_lr else 1.0
    eps = p.m_l**-p.depth_alpha / p.m_n if in_block and p.scale_eps else 1.0
    return ParameterScale(lr=lr, weight_decay=_decay(role, p), eps=eps)


def _decay(role: Role, p: Parametrization) -> float:
    """lambda * m_N keeps lr * lambda constant for hidden weights; norms and biases do not decay."""
    if role in (Role.HIDDEN_BIAS, Role.HIDDEN_NORM, Role.OUTER_NORM):
        return 0.0
    return p.m_n if role is Role.HIDDEN_WEIGHT and p.scale_hidden_lr else 1.0


RAW_PREFIXES = ("mup_", "completep_")
RAW_NAMES = {
    "mup_enabled": "enabled",
    "mup_width_multiplier": "width",
    "mup_input_alpha": "input_multiplier",
    "mup_output_alpha": "output_multiplier",
    "mup_disable_attention_scaling": "attention_scale",
    "mup_disable_hidden_lr_scaling": "scale_hidden_lr",
    "completep_eps_scaling_enabled": "scale_eps",
    "depth_alpha_enabled": "depth_alpha_enabled",
    "depth_multiplier": "depth",
    "depth_alpha_exp": "depth_alpha",
    "completep_depth_alpha_enabled": "depth_alpha_enabled",
    "completep_depth_multiplier": "depth",
    "completep_depth_alpha_exp": "depth_alpha",
}
"""Names in model configs of nanoGPT-mup (flat) and Photon (under `mup_config`) -> our fields."""


def read_raw_names(config: dict[str, Any]) -> Parametrization | None:
    """Remove nanoGPT-mup's (flat) and Photon's (a `mup_config` table) multiplier names from a model config.

    Returns:
        What they describe; None where there are none. A missing `mup_disable_attention_scaling` has its program's
        default: 1/d_head where the names are flat, 1/sqrt(d_head) in `mup_config`. A missing `depth_alpha_enabled`
        means that depth is not scaled, the default of both.

    Raises:
        ConfigError: both spellings, or a name that is in neither.
    """
    nested = config.pop("mup_config", None) or {}
    flat = {name: config.pop(name) for name in list(config) if name in RAW_NAMES or name.startswith(RAW_PREFIXES)}
    if nested and flat:
        raise ConfigError(f"the model config has mup_config and beside it {', '.join(flat)}; keep one spelling.")
    raw = nested or flat
    for name in raw:
        if name not in RAW_NAMES:
            raise ConfigError(f"the model config has no {name!r}.{nearest(name, RAW_NAMES)}")
    if not raw:
        return None
    fields = {RAW_NAMES[name]: value for name, value in raw.items()}
    fields["attention_scale"] = not fields.get("attention_scale", bool(nested))  # the raw names say what is disabled
    fields["scale_hidden_lr"] = not fields.get("scale_hidden_lr", False)
    if not fields.pop("depth_alpha_enabled", False):
        fields["depth_alpha"] = 0.0
    return Parametrization(**fields)
