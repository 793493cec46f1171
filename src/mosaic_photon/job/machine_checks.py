"""What this machine, and the files and folders that a job names, must have; found before a process group exists."""

import os
from typing import TYPE_CHECKING, Any

import psutil
import torch

from mosaic_photon import stores
from mosaic_photon.errors import ConfigError
from mosaic_photon.files import check_path, check_writable
from mosaic_photon.job.documents import masks_by_end_token, separators
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.job.value_checks import field_of
from mosaic_photon.names import human_size
from mosaic_photon.tokenizers import read_tokenizer, special_id, vocabulary_size

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def check_devices(job: MosaicJobConfig, facts: Facts) -> None:
    """Each process of this machine needs an accelerator of its own, unless it has none; then some things cannot be."""
    if facts.on_cpu:
        check_cpu(job, facts)
        return
    devices = torch.accelerator.device_count()
    if facts.processes_here > devices:
        raise ConfigError(
            f"{facts.processes_here} processes on this machine (LOCAL_WORLD_SIZE; torchrun's nproc_per_node), but it "
            f"has {devices} accelerator{'s' if devices != 1 else ''}."
        )


def check_cpu(job: MosaicJobConfig, facts: Facts) -> None:
    """What TorchTitan or torch cannot do on a machine without an accelerator."""
    refused = [
        ("checkpoint.async_mode", job.checkpoint.async_mode == "async_with_pinned_mem", '"async"'),
        ("parallelism.enable_async_tensor_parallel", job.parallelism.enable_async_tensor_parallel, "false"),
        ("training.gc_debug", job.training.gc_debug, "false"),
        ("training.enable_cpu_offload", job.training.enable_cpu_offload, "false"),
        ("profiling.enable_memory_snapshot", job.profiling.enable_memory_snapshot, "false"),
        ("model.converters", bool(job.model.converters), "[]"),
    ]
    for name, asked, possible in refused:
        if asked:
            raise ConfigError(
                f"{name} = {field_of(job, name)!r} needs an accelerator; on this machine it must be {possible}."
            )
    if getattr(facts.model_args, "attn_type", None) == "varlen":
        raise ConfigError(
            f"{job.model.name} {job.model.flavor} has attn_type = 'varlen', which needs an accelerator; choose another "
            "flavor, or set [model.overrides] attn_type = 'flex'."
        )


def check_model(job: MosaicJobConfig, facts: Facts) -> None:
    """What the model's own code says of its sizes and of the job must come to light before the start."""
    _ = facts.model


def check_memory(job: MosaicJobConfig, facts: Facts) -> None:
    """Weights and their gradients, shared out as far as the layout can, must fit the device that is to keep them."""
    if job.training.enable_cpu_offload:
        return
    bytes_each = getattr(torch, job.training.dtype).itemsize
    weights = sum(parameter.numel() for parameter in facts.model.parameters()) * bytes_each
    share = 2 * weights * job.parallelism.data_parallel_replicate_degree / facts.world_size
    there = psutil.virtual_memory().total if facts.on_cpu else torch.cuda.get_device_properties(0).total_memory
    if share > there:
        processes = f"{facts.world_size} process{'es' if facts.world_size > 1 else ''}"
        raise ConfigError(
            f"{job.model.name} {job.model.flavor}: its weights and gradients take {human_size(share)} on each of "
            f"{processes}, more than the {human_size(there)} of a device here; take a smaller model or more devices."
        )


def fitting_tokenizer(job: MosaicJobConfig, model_args: Any) -> "Tokenizer":
    """The job's tokenizer; each of its ids has a row in the model's embedding.

    Raises:
        ConfigError: there is none, or one with more tokens.
    """
    tokenizer = read_tokenizer(job.model.hf_assets_path, "model.hf_assets_path")
    size = vocabulary_size(tokenizer)
    vocab_size = getattr(model_args, "vocab_size", None)
    if vocab_size is not None and size > vocab_size:
        raise ConfigError(
            f"model.hf_assets_path: the tokenizer in {job.model.hf_assets_path!r} has {size:,} tokens, more than "
            f"the {vocab_size:,} of {job.model.name} {job.model.flavor}. Choose another tokenizer or flavor, or set "
            f"[model.overrides] vocab_size = {size}."
        )
    return tokenizer


def check_tokenizer(job: MosaicJobConfig, facts: Facts) -> None:
    """The tokenizer must load, each of its ids must have a row in the model's embedding, and it ends documents."""
    tokenizer, model_args = fitting_tokenizer(job, facts.model_args), facts.model_args
    if masks_by_end_token(model_args) and not _has_end_token(job, tokenizer):
        causal = 'attn_mask_type = "causal"' + (' and attn_type = "sdpa"' if model_args.attn_type == "varlen" else "")
        raise ConfigError(
            f"{job.model.name} {job.model.flavor} keeps documents apart by the tokenizer's end token, and the one in "
            f"{job.model.hf_assets_path!r} has none. Name it as eos_token in its tokenizer_config.json, or let "
            f"attention cross documents: [model.overrides] {causal}."
        )


def _has_end_token(job: MosaicJobConfig, tokenizer: "Tokenizer") -> bool:
    """The data's separator will do, where it is what ends a document, or where the job asks for it by name."""
    given = separators(job)
    named = "eos_token_id" in given or (job.mosaic.separate_documents and given)
    return bool(named) or special_id(job.model.hf_assets_path, "eos", tokenizer) is not None


def check_outputs(job: MosaicJobConfig, facts: Facts) -> None:
    """Folders that the job writes to must be writable."""
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
        if not used:
            continue
        folder = stores.join(job.job.dump_folder, field_of(job, name))
        if not stores.is_url(folder):
            check_writable(name, folder)
        elif name != "checkpoint.folder":
            check_path(name, folder)
        elif facts.rank == 0:
            stores.check_rights(name, folder)
