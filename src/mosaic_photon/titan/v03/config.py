"""A job's tables as 0.3's tree of configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.config import CompileConfig, DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.config.configs import CommConfig
from torchtitan.distributed.activation_checkpoint import FullAC, MemoryBudgetAC, SelectiveAC
from torchtitan.tools.profiler import Profiler

from mosaic_photon.job.tables import ActivationCheckpoint, MosaicJobConfig
from mosaic_photon.titan.interface import Parts
from mosaic_photon.titan.metrics import MosaicMetricsProcessor, checked
from mosaic_photon.titan.v03 import cuda_graphs
from mosaic_photon.titan.v03.args import TrainSpec
from mosaic_photon.titan.v03.names import Names

LACKING = {
    "model.converters": "0.3 converts a model's config; leave it empty, or train on 0.2.2",
    "model.print_after_conversion": "set it to false",
    "optimizer.early_step_in_backward": "set it to false, or train on 0.2.2",
    "parallelism.disable_loss_parallel": "set it to false: tensor parallelism shares the loss out",
    "parallelism.expert_tensor_parallel_degree": "set it to 1, or train on 0.2.2",
    "parallelism.expert_parallel_comm_backend": 'set it to "standard", or train on 0.2.2',
    "parallelism.pipeline_parallel_expert_parallel_overlap": "set it to true",
    "activation_checkpoint.early_stop": "set it to false",
    "activation_checkpoint.selective_ac_option": 'set it to "op", which chooses operations in every layer',
}
"""Fields of a job that 0.3 does not have, and what to do."""


class Made:
    """In a config's place: the part is made by this package, whatever TorchTitan hands to `build`."""

    def __init__(self, make: Callable[..., Any], **facts: Any) -> None:
        """facts: what TorchTitan's trainer reads of the config itself."""
        self.build = make
        self.__dict__ |= facts

    def to_dict(self) -> dict[str, Any]:
        return {}


def job_tables(job: MosaicJobConfig, parts: Parts) -> dict[str, Any]:
    """The fields of `Trainer.Config` that a job's tables say, and those parts that it builds from nothing else."""
    args, spec = parts.spec.model_args[job.model.flavor], parts.spec
    recorded = cuda_graphs.records(job, args, spec.is_titans, parts.loop.wants_inside())
    metrics = taken(MetricsProcessor.Config, job.metrics)
    return {
        "hf_assets_path": job.model.hf_assets_path,
        "dump_folder": job.job.dump_folder,
        "profiler": taken(Profiler.Config, job.profiling),
        "metrics": Made(lambda **kwargs: checked(MosaicMetricsProcessor(metrics, **kwargs), job)),
        "tokenizer": Made(lambda **_: spec.build_tokenizer_fn(job)),
        "training": taken(TrainingConfig, job.training, disable_cuda_graphs=not recorded),
        "parallelism": parallelism(job, spec),
        "checkpoint": taken(CheckpointManager.Config, job.checkpoint),
        "activation_checkpoint": activation_checkpoint(job.activation_checkpoint, spec.names),
        "compile": compilation(job),
        "comm": taken(CommConfig, job.comm),
        "debug": taken(DebugConfig, job.debug),
        "loss": CrossEntropyLoss.Config(global_vocab_size=args.vocab_size),
    }


def parallelism(job: MosaicJobConfig, spec: TrainSpec) -> ParallelismConfig:
    """The table, with the modules of pipeline stages by the model's names."""
    layout, stages = job.parallelism, job.parallelism.module_fqns_per_model_part
    if not spec.is_titans:
        return taken(ParallelismConfig, layout, spmd_backend="partial_dtensor")
    named = stages and [[spec.names.titan(name) for name in stage] for stage in stages]
    return taken(ParallelismConfig, layout, module_fqns_per_model_part=named)


def compilation(job: MosaicJobConfig) -> CompileConfig:
    """The table, and what 0.2.2 has elsewhere."""
    asynchronous = job.parallelism.enable_async_tensor_parallel
    return taken(CompileConfig, job.compile, enable_async_tensor_parallel=asynchronous)


def activation_checkpoint(table: ActivationCheckpoint, names: Names) -> Any:
    """The policy's config. 0.3's selective one is 0.2.2's "op", which saves what is dear to compute again."""
    policy = {"selective": SelectiveAC, "full": FullAC, "memory_budget": MemoryBudgetAC, "none": None}[table.mode]
    if policy is None:
        return None
    shapes = [names.titan(name) for name in table.per_op_sac_force_recompute_mm_shapes_by_fqns]
    more = {"force_recompute_mm_shapes_by_fqns": shapes} if policy is SelectiveAC else {}
    return taken(policy.Config, table, **more)


def taken(config_cls: Any, table: Any, **more: Any) -> Any:
    """A config of 0.3's with the values of a job's table, field by field, and more."""
    known = {field.name for field in dataclasses.fields(config_cls)}
    return config_cls(**{field.name: getattr(table, field.name) for field in dataclasses.fields(table)
                         if field.name in known and field.name not in more}, **more)  # fmt: skip
