"""TorchTitan's JobConfig with this project's tables added. Fields left at None were not set by the user."""

# No `from __future__ import annotations`: TorchTitan's ConfigManager asks `is_dataclass(field.type)`.
from dataclasses import dataclass, field
from typing import Any, Literal

from mosaic_photon.titan.config import job_config as titan


@dataclass
class Model(titan.Model):
    name: str = "llama3_mosaic"
    """A registered TrainSpec: llama3_mosaic, mpt_mup_mosaic, or <TorchTitan language model>_mosaic."""

    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the flavor's model args to replace, by name, e.g. {n_layers = 2}."""


@dataclass
class Optimizer:
    """TorchTitan's optimizer table, widened to any optimizer by name; only what is set is passed on."""

    name: str = "AdamW"
    """Adam or AdamW (TorchTitan's), QHADOPT, ADOPT, or a name from llm-foundry's optimizer registry."""

    lr: float | None = None
    """Peak learning rate. None is TorchTitan's default, 8e-4."""

    beta1: float | None = None
    beta2: float | None = None
    """Decay rates of the first and second moment."""

    eps: float | None = None
    """Added to, or lower bound of, the root of the second moment."""

    weight_decay: float | None = None
    """Weight decay coefficient."""

    v1: float | None = None
    """QHADOPT: weight of the momentum in the step, 1 is ADOPT."""

    decouple: bool | None = None
    """Decay the weights, not the gradient: QHADOPT by (lr / initial_lr) * weight_decay, ADOPT by lr * weight_decay."""

    implementation: Literal["for-loop", "foreach", "fused"] | None = None
    """TorchTitan's switch. None: fused for Adam and AdamW, foreach for QHADOPT and ADOPT."""

    early_step_in_backward: bool = False
    """TorchTitan's: step in backward. Adam and AdamW only, without gradient clipping."""

    no_decay: list[str] = field(default_factory=list)
    """Regular expressions, searched in parameter names; parameters that match get weight decay 0."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """The rest of the optimizer's constructor arguments."""


@dataclass
class LRScheduler:
    """TorchTitan's schedule, or, with `name`, any Composer, llm-foundry or mosaic-photon scheduler."""

    name: str | None = None
    """Name from llm-foundry's scheduler registry. None: TorchTitan's own schedule."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the named scheduler, e.g. {t_warmup = "100ba"}."""

    warmup_steps: int | None = None
    """TorchTitan's schedule: steps of linear warm-up. None is TorchTitan's default, 200."""

    total_steps: int | None = None
    """TorchTitan's schedule: its length in steps. None is training.steps."""

    decay_ratio: float | None = None
    """TorchTitan's schedule: share of the steps spent decaying. None: all after the warm-up."""

    decay_type: Literal["linear", "sqrt", "cosine"] | None = None
    """TorchTitan's schedule: shape of the decay. None is TorchTitan's default, linear."""

    min_lr_factor: float | None = None
    """TorchTitan's schedule: last learning rate as a share of the peak. None is TorchTitan's default, 0."""


@dataclass
class MuP:
    """Maximal update parametrization (width) and CompleteP (depth); multipliers are derived from the base sizes."""

    enabled: bool = False

    base_width: int | None = None
    """d_model of the model that the hyper-parameters were tuned on: m_N = d_model / base_width."""

    base_depth: int | None = None
    """n_layers of that model: m_L = n_layers / base_depth. None: m_L = 1."""

    depth_alpha: float = 1.0
    """Depth exponent in [0, 1]: 0 scales width only, 1 is CompleteP."""

    attention_scale: bool = False
    """Scale attention scores by 1/d_head instead of 1/sqrt(d_head)."""

    input_multiplier: float = 1.0
    """Multiplies the token embedding."""

    output_multiplier: float = 1.0
    """Multiplies the logits, beside 1/m_N."""


@dataclass
class Mosaic:
    """Where the data comes from and how strictly it is checked."""

    config: str = ""
    """The data config's path, as given to --mosaic-config. Filled by the launch wrapper."""

    dataloader: dict[str, Any] = field(default_factory=dict)
    """llm-foundry's train loader config, verbatim, read from the data config."""

    eval_dataloader: dict[str, Any] = field(default_factory=dict)
    """llm-foundry's eval loader config, verbatim, read from the data config."""

    allow_data_change: bool = False
    """Resume although the data config differs from the checkpoint's in what fixes the order of samples."""

    allow_partial_load: bool = False
    """Load of a checkpoint what fits the job; what it lacks stays as it was drawn, what the job lacks is left out."""

    nonfinite: Literal["stop", "skip", "ignore"] = "stop"
    """What to do at a step whose loss or gradient norm is not finite: stop, and save nothing of it; skip its optimizer
    step, up to ten in a row; or go on as TorchTitan does."""

    adopt_cache: bool = False
    """Caches that Streaming or another program filled become this project's: what is in them may be removed."""

    node_folder: str = ""
    """Folder on this node's disk for what can be made or fetched again: caches of streams without `local`, orders,
    indexes, unpacked shards. Empty: `mosaic-photon-UID` in the temporary directory."""

    download_patience_seconds: float | None = None
    """How long a rank waits for a remote that does not answer. None: 300, or where there are several ranks 0.8 of
    comm.train_timeout_seconds, as the others then wait for this one, if that is less."""

    verify_cache: bool = False
    """At start, hash every shard file already in the cache instead of comparing sizes only."""


@dataclass
class MosaicJobConfig(titan.JobConfig):
    """A job: TorchTitan's tables and ours."""

    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lr_scheduler: LRScheduler = field(default_factory=LRScheduler)
    mup: MuP = field(default_factory=MuP)
    mosaic: Mosaic = field(default_factory=Mosaic)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Composer callbacks: registry name or module.path:Class -> arguments."""
