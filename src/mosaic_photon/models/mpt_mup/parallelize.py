"""Tensor, data and pipeline parallelism, activation checkpointing and compilation of the MPT.

TorchTitan's own functions for Llama 3, wherever they do not name Llama's modules. Wrong combinations are refused by
`MPTMuPModelArgs.update_from_config`, before anything is built.
"""

from dataclasses import replace
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from mosaic_photon.job.layout_checks import check_sequences, compiles_model
from mosaic_photon.models.mpt_mup.attention import CausalAttention
from mosaic_photon.models.mpt_mup.model import TitanComposerMPTMuP
from mosaic_photon.titan.config import TORCH_DTYPE_MAP
from mosaic_photon.titan.layouts import (
    ALWAYS_FSDP,
    ParallelDims,
    apply_ac,
    apply_compile,
    apply_ddp,
    disable_fsdp_gradient_division,
    maybe_enable_async_tp,
    op_sac_save_list,
    pipeline_llm,
)

__all__ = ["parallelize_mpt", "pipeline_mpt"]

pipeline_mpt = pipeline_llm
"""TorchTitan's split into stages; the model's top-level names are the ones it knows."""


def parallelize_mpt(model: TitanComposerMPTMuP, parallel_dims: ParallelDims, job_config: Any) -> nn.Module:
    """TorchTitan's order: tensor parallel, context parallel, checkpointing, compile, data parallel.

    Raises:
        ConfigError: the sequence does not divide.
    """
    check_sequences(job_config)
    if parallel_dims.tp_enabled:
        tp_mesh = parallel_dims.get_mesh("tp")
        apply_tp(model, tp_mesh, loss_parallel=not job_config.parallelism.disable_loss_parallel)
        maybe_enable_async_tp(job_config, tp_mesh)
    if parallel_dims.cp_enabled:
        apply_cp(model, parallel_dims.get_mesh("cp"))
    compiled = compiles_model(job_config)
    if job_config.activation_checkpoint.mode != "none":
        apply_ac(
            model, job_config.activation_checkpoint, model_compile_enabled=compiled,
            op_sac_save_list=op_sac_save_list, base_folder=job_config.job.dump_folder,
        )  # fmt: skip
    if compiled:
        apply_compile(model, job_config.compile)
    if parallel_dims.fsdp_enabled or ALWAYS_FSDP:
        names = ["dp_replicate", "fsdp"] if parallel_dims.dp_replicate_enabled else ["fsdp"]
        apply_fsdp(model, parallel_dims.get_mesh(names), job_config, pp_enabled=parallel_dims.pp_enabled)
    elif parallel_dims.dp_replicate_enabled:
        mesh = parallel_dims.get_mesh("dp_replicate")
        apply_ddp(model, mesh, enable_compile=compiled)
    return model


def apply_fsdp(model: TitanComposerMPTMuP, mesh: DeviceMesh, job_config: Any, pp_enabled: bool) -> None:
    """FSDP2: a group per block, one for an untied head; the rest, a tied embedding included, in the root's group.

    Gradients are summed, not averaged: TorchTitan divides by the global token count. Only the root casts its inputs: a
    block's are activations in the right dtype, and ALiBi's bias and slopes, which rounding would make another function.
    """
    policy = job_config.parallelism.fsdp_reshard_after_forward
    reshard = {"always": True, "never": False, "default": not pp_enabled}[policy]
    precision = MixedPrecisionPolicy(
        param_dtype=TORCH_DTYPE_MAP[job_config.training.mixed_precision_param],
        reduce_dtype=TORCH_DTYPE_MAP[job_config.training.mixed_precision_reduce],
    )
    config: dict[str, Any] = {"mesh": mesh, "mp_policy": replace(precision, cast_forward_inputs=False)}
    if job_config.training.enable_cpu_offload:
        config["offload_policy"] = CPUOffloadPolicy()
    tied = model.model_args.tie_word_embeddings
    if model.tok_embeddings is not None and not tied:
        fully_shard(model.tok_embeddings, **config, reshard_after_forward=reshard)
    for block in model.layers.values():
        fully_shard(block, **config, reshard_after_forward=reshard)
    if model.norm is not None and model.output is not None and not tied:
        # The last group is prefetched right after the forward pass: resharding it would be work undone at once.
        fully_shard([model.norm, model.output], **config, reshard_after_forward=policy == "always")
    fully_shard(model, **config | {"mp_policy": precision})
    disable_fsdp_gradient_division(model)


def apply_tp(model: TitanComposerMPTMuP, mesh: DeviceMesh, loss_parallel: bool) -> None:
    """Megatron's split of each block with sequence parallelism between the blocks, as TorchTitan's Llama 3.

    The token embedding is split by rows; a tied head uses the same shards column-wise.
    """
    args = model.model_args
    logits = Shard(-1) if loss_parallel else Replicate()
    plan: dict[str, ParallelStyle] = {
        "tok_embeddings.wte": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "tok_embeddings.wpe": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "tok_embeddings.output.norm": SequenceParallel(),
        "norm": SequenceParallel(),
        "output.lm_head": ColwiseParallel(
            input_layouts=Shard(1), output_layouts=logits, use_local_output=not loss_parallel
        ),
    }
    if args.tie_word_embeddings:
        plan["output"] = TiedHeadParallel(loss_parallel)
    parallelize_module(model, mesh, _existing(model, plan))
    for block in model.layers.values():
        parallelize_module(block, mesh, _existing(block, _block_plan()))
        attn: Any = block.attn
        attn.n_heads //= mesh.size()
        attn.kv_n_heads //= mesh.size()
    heads = args.n_heads // mesh.size()
    model.sequence_shards = mesh.size()
    model.head_range = (mesh.get_local_rank() * heads, (mesh.get_local_rank() + 1) * heads)


def _block_plan() -> dict[str, ParallelStyle]:
    gathered = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    column, row = ColwiseParallel(), RowwiseParallel(output_layouts=Shard(1))
    return {
        "norm_1": SequenceParallel(), "norm_2": SequenceParallel(),
        "attn": gathered, "ffn": gathered,
        "attn.Wq": column, "attn.Wk": column, "attn.Wv": column, "attn.out_proj": row,
        "attn.q_ln": SequenceParallel(sequence_dim=2, use_local_output=True),
        "attn.k_ln": SequenceParallel(sequence_dim=2, use_local_output=True),
        "ffn.up_proj": column, "ffn.gate_proj": column, "ffn.down_proj": row,
        "resid_attn_dropout.norm": SequenceParallel(), "resid_ffn_dropout.norm": SequenceParallel(),
    }  # fmt: skip


def _existing(module: nn.Module, plan: dict[str, ParallelStyle]) -> dict[str, ParallelStyle]:
    """The plan without the submodules that this model, or pipeline stage, does not have."""
    names = {name for name, _ in module.named_modules()}
    return {name: style for name, style in plan.items() if name in names}


class TiedHeadParallel(ParallelStyle):
    """The head without weights of its own: gather the sequence as a DTensor, so that it meets the sharded embedding."""

    def __init__(self, loss_parallel: bool) -> None:
        self.loss_parallel = loss_parallel

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        from torch.distributed.tensor.parallel import PrepareModuleInputOutput

        return PrepareModuleInputOutput(
            input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),), use_local_input=False,
            output_layouts=(Shard(-1),),
            desired_output_layouts=(Shard(-1) if self.loss_parallel else Replicate(),),
            use_local_output=not self.loss_parallel,
        )._apply(module, device_mesh)  # fmt: skip


def apply_cp(model: TitanComposerMPTMuP, mesh: DeviceMesh) -> None:
    """Ring attention: TorchTitan's hook, on a module in place of each block's attention function."""
    from mosaic_photon.titan.layouts import apply_cp_to_attention_module

    kernels = []
    for block in model.layers.values():
        attn: Any = block.attn
        attn.attn_fn = CausalAttention()
        kernels.append(attn.attn_fn.kernel)
    apply_cp_to_attention_module(kernels, mesh, "sdpa")
