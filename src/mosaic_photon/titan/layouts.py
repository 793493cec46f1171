"""How TorchTitan lays a model out on devices."""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.pipeline_parallel import pipeline_llm

from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.releases import installed

ALWAYS_FSDP = installed().folder == "v03"
"""Whether one rank, and replicas, are FSDP too: mixed precision is FSDP's, and there is no DDP."""

if TYPE_CHECKING or not ALWAYS_FSDP:
    from torchtitan.distributed.activation_checkpoint import apply_ac
    from torchtitan.distributed.context_parallel import apply_cp_to_attention_module
    from torchtitan.distributed.pipeline_parallel import generate_llm_fqn_per_model_part
    from torchtitan.distributed.tensor_parallel import maybe_enable_async_tp
    from torchtitan.models.llama3.infra.parallelize import (
        _op_sac_save_list as op_sac_save_list,
    )
    from torchtitan.models.llama3.infra.parallelize import (
        apply_compile,
        apply_ddp,
        disable_fsdp_gradient_division,
    )
else:
    from torchtitan.distributed.fsdp import disable_fsdp_gradient_division
    from torchtitan.distributed.pipeline_parallel import (
        _generate_llm_fqn_per_model_part as generate_llm_fqn_per_model_part,
    )

    from mosaic_photon.titan.v03.layouts import (
        apply_ac,
        apply_compile,
        maybe_enable_async_tp,
    )

    op_sac_save_list = apply_ddp = apply_cp_to_attention_module = None

__all__ = [
    "ALWAYS_FSDP",
    "ParallelDims",
    "apply_ac",
    "apply_compile",
    "apply_cp_to_attention_module",
    "apply_ddp",
    "compute_dtype",
    "disable_fsdp_gradient_division",
    "generate_llm_fqn_per_model_part",
    "maybe_enable_async_tp",
    "one_process",
    "op_sac_save_list",
    "parallel_dims",
    "pipeline_llm",
    "precision_line",
    "sum_of_losses",
    "whole",
]


def parallel_dims(job: MosaicJobConfig, world_size: int) -> ParallelDims:
    """The job's degrees, as its trainer has them; they must fit the number of processes."""
    degrees = job.parallelism
    return ParallelDims(
        dp_replicate=degrees.data_parallel_replicate_degree, dp_shard=degrees.data_parallel_shard_degree,
        cp=degrees.context_parallel_degree, tp=degrees.tensor_parallel_degree, pp=degrees.pipeline_parallel_degree,
        ep=degrees.expert_parallel_degree, world_size=world_size,
        **({} if ALWAYS_FSDP else {"etp": degrees.expert_tensor_parallel_degree}),
    )  # fmt: skip


def one_process() -> ParallelDims:
    """The layout of a job that is one process."""
    return parallel_dims(MosaicJobConfig(), 1)


def compute_dtype(job: MosaicJobConfig, dims: ParallelDims) -> str:
    """In which dtype the layers compute: "bfloat16" or "float32".

    TorchTitan leaves mixed precision to FSDP and, where nothing is sharded in any way, to autocast, which knows no
    float32; tensor and pipeline parallelism without FSDP have none. Since 0.3 all is under FSDP.
    """
    mixed = job.training.mixed_precision_param
    if ALWAYS_FSDP or dims.fsdp_enabled or dims.ep_enabled:
        return mixed
    autocast = mixed == "bfloat16" and not (dims.tp_enabled or dims.pp_enabled)
    return mixed if autocast else job.training.dtype


def precision_line(job: MosaicJobConfig, dims: ParallelDims) -> str:
    """In which dtype the layers compute, and that it is another than the job asks for."""
    dtype, mixed = compute_dtype(job, dims), job.training.mixed_precision_param
    if dtype == mixed:
        return dtype
    return f"{dtype}, not training.mixed_precision_param = {mixed}: in this layout TorchTitan has no mixed precision"


def whole(value: Any) -> Any:
    """The value; a DTensor, as a loss under loss parallelism, put together from its shards, which is a collective."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def sum_of_losses(shares: torch.Tensor, dims: ParallelDims) -> torch.Tensor:
    """What ranks have of a loss, summed in place over all that have some; stages without it give 0 and learn it."""
    for dimension in ("loss", "pp"):
        mesh = dims.get_optional_mesh(dimension)
        if mesh is not None:
            dist.all_reduce(shares, group=mesh.get_group())
    return shares
