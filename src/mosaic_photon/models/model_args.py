"""`[model.overrides]` on a flavor's model args, and what can be known of a model before it is built."""

import copy
import dataclasses
import math
import typing
from typing import Any

import torch
import torch.nn as nn

from mosaic_photon.compat.grouped_mm import without_grouped_mm
from mosaic_photon.errors import ConfigError, ask_upstream, nearest
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.kinds import describe, fits
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.spec import BaseModelArgs, TrainSpec

SIZES = (
    "dim", "inter_dim", "hidden_dim", "moe_inter_dim", "head_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size",
    "max_seq_len", "multiple_of", "num_experts", "top_k", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
    "v_head_dim", "original_seq_len", "sliding_window_size",
)  # fmt: skip
"""Fields of TorchTitan's model args, and of the tables in them, that count something that there must be."""


def apply_model_overrides(spec: TrainSpec, job_config: MosaicJobConfig) -> None:
    """Write `[model.overrides]` into the job's flavor.

    Raises:
        ConfigError: no such flavor, or an override names no field of its model args, has another type or is no size.
    """
    name, flavor = job_config.model.name, job_config.model.flavor
    if flavor not in spec.model_args:
        raise ConfigError(f"model.flavor: {name} has no flavor {flavor!r}.{nearest(flavor, spec.model_args)}")
    args = merged(spec.model_args[flavor], job_config.model.overrides, "model.overrides", f"the model args of {name}")
    spec.model_args[flavor] = without_grouped_mm(args)


SMALLEST_FLEX_HEAD = 16
"""torch.nn.attention.flex_attention's on CUDA: its kernels multiply tiles, which Triton has from 16 on."""


def build_on_meta(job_config: MosaicJobConfig, spec: TrainSpec) -> nn.Module:
    """The job's model without memory; what its own code says of its sizes and of the job is said before the start.

    Raises:
        ConfigError: the model args or the job are refused by the model.
    """
    name, flavor = job_config.model.name, job_config.model.flavor
    args = copy.deepcopy(spec.model_args[flavor])
    kinds = (ValueError, TypeError, AssertionError, RuntimeError, ArithmeticError)  # RuntimeError: NotImplementedError
    message = f"{name} {flavor} cannot be built as the job has it"
    ask_upstream(message, kinds, args.update_from_config, job_config)
    length, longest = job_config.validation.seq_len, getattr(args, "max_seq_len", None)
    if job_config.validation.enable and longest is not None and length > longest:
        raise ConfigError(f"validation.seq_len = {length}: the model's positions end at {longest}, set at most that.")
    with torch.device("meta"):
        return ask_upstream(message, kinds, spec.model_cls, args)


def check_sizes(job: MosaicJobConfig, facts: Facts) -> None:
    """What TorchTitan's models ask of their sizes only when they compute.

    Raises:
        ConfigError: heads that do not share key and value heads in equal groups, do not divide the model's width, or
            have an odd size, which no rotation has; or experts of which more are chosen than there are.
    """
    model_args = facts.model_args
    heads, kv_heads = getattr(model_args, "n_heads", None), getattr(model_args, "n_kv_heads", None)
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise ConfigError(f"the model's n_heads = {heads} must be a multiple of its n_kv_heads = {kv_heads}.")
    if not isinstance(model_args, BaseModelArgs) or not hasattr(model_args, "dim"):
        return  # an MPT, which llm-foundry judges
    rotated = getattr(model_args, "qk_rope_head_dim", None) or getattr(model_args, "head_dim", None)
    if rotated is None and model_args.dim % heads:
        raise ConfigError(f"the model's dim = {model_args.dim} must be a multiple of its n_heads = {heads}.")
    if (rotated or model_args.dim // heads) % 2:
        name = "head_dim" if rotated else "dim / n_heads"
        raise ConfigError(f"the model's {name} = {rotated or model_args.dim // heads} must be even, to be rotated.")
    if getattr(model_args, "moe_enabled", True) and hasattr(model_args, "moe_args"):
        check_experts(model_args.moe_args)


def check_flex_heads(job: MosaicJobConfig, facts: Facts) -> None:
    """On a GPU, flex attention has no kernel for small heads; torch says so when it compiles, in the first step.

    Raises:
        ConfigError: the model attends by it, with heads of fewer than SMALLEST_FLEX_HEAD dimensions.
    """
    model_args = facts.model_args
    by_flex = getattr(model_args, "attends_by_flex", getattr(model_args, "attn_type", "sdpa") == "flex")
    if facts.on_cpu or not by_flex:
        return
    width = getattr(model_args, "dim", None) or model_args.d_model
    own = getattr(model_args, "head_dim", None) or getattr(model_args, "v_head_dim", None)  # the second is DeepSeek's
    size = own or width // model_args.n_heads
    if size < SMALLEST_FLEX_HEAD:
        raise ConfigError(
            f"{job.model.name} {job.model.flavor} has heads of {size} dimensions, and on a GPU flex attention, by "
            f"which it attends, has kernels for {SMALLEST_FLEX_HEAD} and more. Set fewer heads (n_heads) or a wider "
            "model in [model.overrides]."
        )


def check_experts(moe_args: Any) -> None:
    """TorchTitan's rules for choosing experts, by groups of them or all."""
    experts, groups, limited = moe_args.num_experts, moe_args.num_expert_groups, moe_args.num_limited_groups
    if moe_args.top_k > experts:
        raise ConfigError(f"the model's moe_args.top_k = {moe_args.top_k}: there are {experts} experts (num_experts).")
    if groups is None:
        return
    if groups < 1 or experts % groups or experts // groups < 2:
        raise ConfigError(
            f"the model's moe_args.num_expert_groups = {groups} must divide its num_experts = {experts} into groups of "
            "at least 2."
        )
    if limited is None or not 1 <= limited <= groups:
        raise ConfigError(
            f"the model's moe_args.num_limited_groups = {limited} must be one of 1 to {groups}, its groups."
        )
    if moe_args.top_k > limited * experts // groups:
        raise ConfigError(
            f"the model's moe_args.top_k = {moe_args.top_k}: {limited} of {groups} groups have "
            f"{limited * experts // groups} experts."
        )


def merged(args: Any, overrides: dict[str, Any], where: str, owner: str) -> Any:
    """A copy of the dataclass `args` with fields replaced; into a field that is a dataclass itself, a table is merged.

    Args:
        args: a dataclass.
        overrides: field -> value.
        where: the table's name in messages.
        owner: what has the fields, in messages.

    Raises:
        ConfigError: no such field, a value of another type, or a size below 1.
    """
    types = typing.get_type_hints(type(args))
    for name in overrides:
        if name not in types:
            raise ConfigError(f"{where}.{name}: {owner} have no such field.{nearest(name, types)}")
    return dataclasses.replace(
        args, **{name: _value(args, name, value, types[name], where) for name, value in overrides.items()}
    )


def _value(args: Any, name: str, value: Any, expected: Any, where: str) -> Any:
    where, current = f"{where}.{name}", getattr(args, name)
    if current is None and isinstance(value, dict):
        tables: list[Any] = [option for option in typing.get_args(expected) if dataclasses.is_dataclass(option)]
        current = tables[0]() if tables else None  # a table that the flavor does without, such as llama4's rope scaling
    if dataclasses.is_dataclass(current) and isinstance(value, dict):
        return merged(current, value, where, f"the fields of {name}")
    if not fits(value, expected):
        raise ConfigError(f"{where} = {value!r} should be {describe(expected)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} = {value}: must be a finite number.")
    if name in SIZES and isinstance(value, int) and value < 1:
        raise ConfigError(f"{where} = {value}: must be at least 1.")
    return value
