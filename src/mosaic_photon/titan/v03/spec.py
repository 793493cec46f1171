"""A model of 0.3's in the terms of a job."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
import torch.nn as nn
from torchtitan.distributed.pipeline_parallel import (
    _generate_llm_fqn_per_model_part,
    _get_pipeline_metadata,
    pipeline_llm,
)

from mosaic_photon.compat import tokenizer_end_token
from mosaic_photon.compat.gloo_fsdp_reduction import force_sum_reduction
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.interface import Builders, OwnModel
from mosaic_photon.titan.parts import HuggingFaceTokenizer
from mosaic_photon.titan.v03.args import OwnConfig, TrainSpec
from mosaic_photon.titan.v03.names import OF_ENDS, Names

MODELS = ["deepseek_v3", "llama3", "qwen3"]
"""TorchTitan's models that this package trains on 0.3, each in a file of its name."""

ON_022 = "it trains on TorchTitan 0.2.2 (pip install torchtitan==0.2.2)"
NOT_HERE = {name: f"TorchTitan 0.3 has dropped it; {ON_022}" for name in ("llama3_ft", "llama4")}
NOT_HERE["gpt_oss"] = f"this package does not have it on TorchTitan 0.3 yet; {ON_022}"
NOT_HERE |= dict.fromkeys(("kimi_k2_7", "muse_glimmer", "qwen3_5"), "this package does not train it yet")


def known_models() -> list[str]:
    """Their names."""
    return MODELS


def model_spec(name: str, builders: Builders, own: OwnModel | None = None) -> TrainSpec:
    """TorchTitan's model `name`, or `own`, fed and trained by this package's parts."""
    if own is not None:
        return _spec_of(own, builders)
    model = importlib.import_module(f"mosaic_photon.titan.v03.{name}")
    return TrainSpec(
        model_args=model.flavors(),
        model_config=lambda args, seed: args.titan_config(seed),
        parallelize_fn=lambda job: _reduced_by_gloo(model.parallelize),
        pipelining_fn=pipeline_llm,
        build_tokenizer_fn=build_tokenizer,
        state_dict_adapter=model.Adapter,
        builders=builders,
        names=model.Adapter.names,
    )


def _spec_of(own: OwnModel, builders: Builders) -> TrainSpec:
    """A model whose layout is told in 0.2.2's terms."""

    def parallelize_fn(job: MosaicJobConfig) -> Callable[..., nn.Module]:
        return _reduced_by_gloo(lambda model, parallel_dims, **_: own.parallelize_fn(model, parallel_dims, job))

    return TrainSpec(
        model_args=copy.deepcopy(dict(own.model_args)),
        model_config=lambda args, seed: OwnConfig(own.model_cls, args),
        parallelize_fn=parallelize_fn,
        pipelining_fn=_with_job_names(own.pipelining_fn),
        build_tokenizer_fn=build_tokenizer,
        state_dict_adapter=own.state_dict_adapter,
        builders=builders,
        names=Names(),
        is_titans=False,
    )


def _with_job_names(pipeline: Callable[..., Any]) -> Callable[..., Any]:
    """`pipeline`, of a model whose head is called as in 0.2.2."""

    def pipelining_fn(model: nn.Module, **given: Any) -> Any:
        layout = given["parallelism"]
        if layout.module_fqns_per_model_part is None:
            counts = _get_pipeline_metadata(given["parallel_dims"], layout, given["model_config"])
            stages = [[OF_ENDS.job(name) for name in stage] for stage in _generate_llm_fqn_per_model_part(*counts)]
            given["parallelism"] = dataclasses.replace(layout, module_fqns_per_model_part=stages)
        return pipeline(model, **given)

    return pipelining_fn


def register(name: str, spec: Any) -> None:
    """Raises ConfigError: 0.3 has no registry; its models come with a run's config."""
    raise ConfigError(
        f"TorchTitan 0.3 has no registry that {name} could be put into: train with python -m "
        "mosaic_photon.train_with_mosaic --config JOB.toml --mosaic-config DATA.toml"
    )


def build_tokenizer(job: MosaicJobConfig) -> Any:
    """TorchTitan's, with the ids that it misses."""
    folder, dataset = job.model.hf_assets_path, job.mosaic.dataloader["dataset"]
    return tokenizer_end_token.complete(HuggingFaceTokenizer(tokenizer_path=folder), folder, dataset)


def _reduced_by_gloo(parallelize: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`parallelize`, with FSDP's reductions where gloo does them."""

    def parallelize_fn(model: nn.Module, **kwargs: Any) -> nn.Module:
        model = parallelize(model, **kwargs)
        if dist.get_backend() == "gloo":
            force_sum_reduction(model)
        return model

    return parallelize_fn
