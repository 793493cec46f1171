"""What a job cannot do, found before any process group, model or file exists."""

import os
from math import prod
from typing import Any

import psutil
import torch
import torch.nn as nn
from tokenizers import Tokenizer

from mosaic_photon.checkpoints.checks import check_checkpoint
from mosaic_photon.compat.cpu_device_type import ON_CPU
from mosaic_photon.dataloader.documents import masks_by_end_token
from mosaic_photon.dataloader.shards.patience import patience_of
from mosaic_photon.errors import ConfigError
from mosaic_photon.files import check_path, check_writable
from mosaic_photon.job.layout_checks import (
    check_activation_checkpoint,
    check_devices,
    check_experts,
    check_pipeline,
    check_tensor_parallel,
    sequence_divisor,
)
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.job.value_checks import check_values
from mosaic_photon.models.model_args import build_on_meta, check_sizes
from mosaic_photon.names import size
from mosaic_photon.titan.config import TORCH_DTYPE_MAP
from mosaic_photon.titan.spec import TrainSpec
from mosaic_photon.tokenizers import special_id


def check_job(job: MosaicJobConfig, spec: TrainSpec) -> int:
    """Check what can be known from the configs, the environment and the tokenizer; returns the data-parallel degree.

    Raises:
        ConfigError: the first thing found that the job cannot do.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    check_values(job)
    patience_of(job, world_size)
    data_parallel = check_layout(job, world_size)
    check_batch(job, data_parallel)
    if job.parallelism.pipeline_parallel_degree > 1 and spec.pipelining_fn is None:
        raise ConfigError(
            f"parallelism.pipeline_parallel_degree = {job.parallelism.pipeline_parallel_degree}: "
            f"TorchTitan cannot split {job.model.name} into pipeline stages; it must be 1."
        )
    model_args = spec.model_args[job.model.flavor]
    if ON_CPU:
        check_cpu(job, model_args)
    else:
        check_devices()
    check_sizes(model_args)
    check_tensor_parallel(job, model_args)
    check_experts(job, model_args, world_size)
    check_pipeline(job, model_args)
    check_activation_checkpoint(job)
    check_tokenizer(job, model_args)
    model = build_on_meta(job, spec)
    check_memory(job, model, world_size)
    check_outputs(job)
    check_checkpoint(job, spec, model, world_size)
    return data_parallel


def check_layout(job: MosaicJobConfig, world_size: int) -> int:
    """The parallel degrees must multiply to the number of processes; returns the data-parallel degree."""
    layout = job.parallelism
    degrees = {
        "data_parallel_replicate_degree": layout.data_parallel_replicate_degree,
        "context_parallel_degree": layout.context_parallel_degree,
        "tensor_parallel_degree": layout.tensor_parallel_degree,
        "pipeline_parallel_degree": layout.pipeline_parallel_degree,
    }
    for name, degree in degrees.items():
        if degree < 1:
            raise ConfigError(f"parallelism.{name} = {degree}: must be at least 1.")
    others = prod(degrees.values())
    shard = layout.data_parallel_shard_degree
    if shard == -1:
        shard = max(1, world_size // others)
    if shard * others != world_size:
        product = " * ".join(f"{name} {degree}" for name, degree in degrees.items())
        raise ConfigError(
            f"parallelism: data_parallel_shard_degree {shard} * {product} = {shard * others}, but the job has "
            f"{world_size} process{'es' if world_size > 1 else ''} (WORLD_SIZE; torchrun's nnodes * nproc_per_node)."
        )
    replicate = layout.data_parallel_replicate_degree
    is_ddp = replicate > 1 and shard == 1 and layout.context_parallel_degree == 1  # with CP weights are sharded: HSDP
    if is_ddp and replicate != world_size:
        raise ConfigError(
            f"parallelism: data_parallel_replicate_degree = {replicate} without data_parallel_shard_degree is DDP, "
            "which TorchTitan cannot combine with tensor or pipeline parallelism; shard the data too."
        )
    return replicate * shard


def check_batch(job: MosaicJobConfig, data_parallel: int) -> None:
    """The global batch must be whole micro-batches on every data-parallel rank, the sequence whole shards."""
    training, layout = job.training, job.parallelism
    micro = training.local_batch_size * data_parallel
    if training.global_batch_size > 0 and training.global_batch_size % micro:
        raise ConfigError(
            f"training.global_batch_size = {training.global_batch_size} does not divide into micro-batches: it must "
            f"be a multiple of local_batch_size {training.local_batch_size} * data-parallel degree {data_parallel}, "
            f"{micro}."
        )
    divisor = sequence_divisor(job)
    if training.seq_len % divisor:
        raise ConfigError(
            f"training.seq_len = {training.seq_len} must be a multiple of {divisor} "
            f"(tensor_parallel_degree {layout.tensor_parallel_degree} * 2 * context_parallel_degree "
            f"{layout.context_parallel_degree}), e.g. {max(1, training.seq_len // divisor) * divisor}."
        )
    shards = layout.tensor_parallel_degree * layout.context_parallel_degree
    divisor = 2 * shards if layout.context_parallel_degree > 1 else shards
    if job.validation.enable and job.validation.seq_len % divisor:
        raise ConfigError(
            f"validation.seq_len = {job.validation.seq_len} must be a multiple of {divisor}, the layout's shards of a "
            f"sequence, e.g. {max(1, job.validation.seq_len // divisor) * divisor}."
        )


def check_cpu(job: MosaicJobConfig, model_args: Any) -> None:
    """What TorchTitan or torch cannot do on a machine without an accelerator."""
    refused = [
        ("parallelism.context_parallel_degree", job.parallelism.context_parallel_degree > 1, "1"),
        ("checkpoint.async_mode", job.checkpoint.async_mode == "async_with_pinned_mem", '"async"'),
        ("parallelism.enable_async_tensor_parallel", job.parallelism.enable_async_tensor_parallel, "false"),
        ("fault_tolerance.enable", job.fault_tolerance.enable, "false"),
        ("training.enable_cpu_offload", job.training.enable_cpu_offload, "false"),
        ("profiling.enable_memory_snapshot", job.profiling.enable_memory_snapshot, "false"),
        ("model.converters", bool(job.model.converters), "[]"),
    ]
    for name, asked, possible in refused:
        if asked:
            table, field = name.split(".")
            given = getattr(getattr(job, table), field)
            raise ConfigError(f"{name} = {given!r} needs an accelerator; on this machine it must be {possible}.")
    if getattr(model_args, "attn_type", None) == "varlen":
        raise ConfigError(
            f"{job.model.name} {job.model.flavor} has attn_type = 'varlen', which needs an accelerator; choose another "
            "flavor, or set [model.overrides] attn_type = 'flex'."
        )


def check_memory(job: MosaicJobConfig, model: nn.Module, world_size: int) -> None:
    """Weights and their gradients, shared out as far as the layout can, must fit the device that is to keep them."""
    if job.training.enable_cpu_offload:
        return
    bytes_each = torch.finfo(TORCH_DTYPE_MAP[job.training.dtype]).bits // 8
    weights = sum(parameter.numel() for parameter in model.parameters()) * bytes_each
    share = 2 * weights * job.parallelism.data_parallel_replicate_degree / world_size
    there = psutil.virtual_memory().total if ON_CPU else torch.cuda.get_device_properties(0).total_memory
    if share > there:
        raise ConfigError(
            f"{job.model.name} {job.model.flavor}: its weights and gradients take {size(share)} on each of "
            f"{world_size} process{'es' if world_size > 1 else ''}, more than the {size(there)} of a device here; take "
            "a smaller model or more devices."
        )


def check_tokenizer(job: MosaicJobConfig, model_args: Any) -> None:
    """The tokenizer must load, and each of its ids must have a row in the model's embedding."""
    path = os.path.join(job.model.hf_assets_path, "tokenizer.json")
    if not os.path.isfile(path):
        raise ConfigError(
            f"model.hf_assets_path: no tokenizer.json in {job.model.hf_assets_path!r}; give a folder with a Hugging "
            "Face tokenizer (tests/assets/tokenizer has one for debugging)."
        )
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"model.hf_assets_path: {path} is not a tokenizer: {error}.") from None
    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)  # ids may have holes
    vocab_size = getattr(model_args, "vocab_size", None)
    if vocab_size is not None and size > vocab_size:
        raise ConfigError(
            f"model.hf_assets_path: the tokenizer in {job.model.hf_assets_path!r} has {size:,} tokens, more than "
            f"the {vocab_size:,} of {job.model.name} {job.model.flavor}. Choose another tokenizer or flavor, or set "
            f"[model.overrides] vocab_size = {size}."
        )
    if masks_by_end_token(model_args) and not _has_end_token(job, tokenizer):
        causal = 'attn_mask_type = "causal"' + (' and attn_type = "sdpa"' if model_args.attn_type == "varlen" else "")
        raise ConfigError(
            f"{job.model.name} {job.model.flavor} keeps documents apart by the tokenizer's end token, and the one in "
            f"{job.model.hf_assets_path!r} has none. Name it as eos_token in its tokenizer_config.json, or let "
            f"attention cross documents: [model.overrides] {causal}."
        )


def _has_end_token(job: MosaicJobConfig, tokenizer: Tokenizer) -> bool:
    between = job.mosaic.dataloader.get("dataset", {}).get("eos_token_id")
    return between is not None or special_id(job.model.hf_assets_path, "eos", tokenizer) is not None


def check_outputs(job: MosaicJobConfig) -> None:
    """Folders must be writable, and validation must have data."""
    if job.validation.enable and not job.mosaic.eval_dataloader:
        raise ConfigError(
            f"validation.enable = true, but {job.mosaic.config} has no eval loader; add a "
            "[mosaic_eval_dataloader] table."
        )
    check_path("job.dump_folder", job.job.dump_folder)
    check_writable("job.dump_folder", job.job.dump_folder)
    if job.job.save_config_file is not None:
        file = os.path.join(job.job.dump_folder, job.job.save_config_file)
        if os.path.isdir(os.path.normpath(file)) or not os.path.basename(file):  # its parts may not be there yet
            raise ConfigError(f"job.save_config_file = {job.job.save_config_file!r}: {file} is a folder, not a file.")
        check_writable("job.save_config_file", os.path.dirname(file))
    written = {
        "checkpoint.folder": job.checkpoint.enable and not job.checkpoint.load_only,
        "metrics.save_tb_folder": job.metrics.enable_tensorboard,
        "profiling.save_traces_folder": job.profiling.enable_profiling,
        "profiling.save_memory_snapshot_folder": job.profiling.enable_memory_snapshot,
    }
    for name, used in written.items():
        table, field = name.split(".")
        if used:
            check_writable(name, os.path.join(job.job.dump_folder, getattr(getattr(job, table), field)))
