"""Values that TorchTitan takes and fails on later, some after its last step: found before anything is built."""

import importlib.util
import os
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.kinds import is_table
from mosaic_photon.job.layout_checks import data_parallel_degree
from mosaic_photon.job.tables import MosaicJobConfig

AT_LEAST = {
    "training.steps": 1,
    "training.local_batch_size": 1,
    "training.seq_len": 1,
    "training.gc_freq": 1,
    "validation.freq": 1,
    "validation.local_batch_size": 1,
    "validation.seq_len": 1,
    "metrics.log_freq": 1,
    "checkpoint.interval": 1,
    "checkpoint.keep_latest_k": 0,
    "profiling.profiler_active": 1,
    "profiling.profiler_warmup": 0,
    "comm.init_timeout_seconds": 1,
    "comm.train_timeout_seconds": 1,
    "parallelism.pipeline_parallel_microbatch_size": 1,
    "parallelism.pipeline_parallel_layers_per_stage": 1,
}
ALL_OR_AT_LEAST = {"training.global_batch_size": 1, "checkpoint.load_step": 0, "validation.steps": 1}
"""-1 stands for TorchTitan's own choice."""
MOST_POSITIONS = 1 << 31
"""Of a micro-batch: beyond it no device holds what a layer makes of them."""
REFUSED = {
    "experimental.custom_args_module": "TorchTitan does not read it; job.custom_config_module is right",
    "memory_estimation.enable": "TorchTitan 0.2.2 has the setting and no estimator; it must be false",
    "fault_tolerance.enable": "TorchTitan trains with TorchFT by a trainer of its own, and not by this one; it must "
    "be false",
}
"""Fields that ask for what no job here does -> why."""
COMPONENTS = ("model", "loss")
"""What TorchTitan compiles."""


def field_of(job: MosaicJobConfig, name: str) -> Any:
    """The value of a field, or the table, of this name: "table.field"."""
    return attrgetter(name)(job)


def fields_in(job: MosaicJobConfig, name: str) -> Iterator[str]:
    """The names of all fields in a table and in the tables in it; of a field its own."""
    value = field_of(job, name)
    if not is_table(type(value)):
        yield name
        return
    for field in vars(value):
        yield from fields_in(job, f"{name}.{field}")


def check_ranges(job: MosaicJobConfig, facts: Facts) -> None:
    """Numbers that have a least value, and the clipping norm."""
    for name, least in {**AT_LEAST, **ALL_OR_AT_LEAST}.items():
        value = field_of(job, name)
        if value is not None and value < least and not (name in ALL_OR_AT_LEAST and value == -1):
            also = ", or -1" if name in ALL_OR_AT_LEAST else ""
            raise ConfigError(f"{name} = {value}: must be at least {least}{also}.")
    if not job.training.max_norm > 0:
        raise ConfigError(f"training.max_norm = {job.training.max_norm}: must be above 0; inf clips nothing.")
    balancer = job.parallelism.context_parallel_load_balancer
    if balancer not in ("headtail", "ptrr", None):
        raise ConfigError(
            f"parallelism.context_parallel_load_balancer = {balancer!r}: headtail, ptrr or None is right."
        )
    budget = job.activation_checkpoint.memory_budget
    if not 0 <= budget <= 1:
        raise ConfigError(f"activation_checkpoint.memory_budget = {budget}: must be a share, from 0 to 1.")
    seed = job.debug.seed
    if seed is not None and not -(1 << 63) <= seed < 1 << 63:
        raise ConfigError(f"debug.seed = {seed}: must be a number of 64 bits.")


def check_micro_batches(job: MosaicJobConfig, facts: Facts) -> None:
    """A micro-batch must be of a size that some device can hold."""
    for table in ("training", "validation"):
        batch, length = getattr(job, table).local_batch_size, getattr(job, table).seq_len
        if batch * length > MOST_POSITIONS:
            raise ConfigError(
                f"{table}.local_batch_size = {batch} sequences of seq_len = {length} are more than a micro-batch can "
                f"hold: at most {MOST_POSITIONS:,} positions."
            )


def check_refused(job: MosaicJobConfig, facts: Facts) -> None:
    """What no job here does must not be asked for."""
    for name, why in REFUSED.items():
        if value := field_of(job, name):
            raise ConfigError(f"{name} = {value!r}: {why}.")


def check_start_is_loaded(job: MosaicJobConfig, facts: Facts) -> None:
    """A job that names what to begin from must not begin from random weights."""
    checkpoint = job.checkpoint
    named = {
        "initial_load_path": bool(checkpoint.initial_load_path),
        "initial_load_in_hf": checkpoint.initial_load_in_hf,
        "load_step": checkpoint.load_step != -1,
    }
    for name, given in named.items():
        if given and not checkpoint.enable:
            value = getattr(checkpoint, name)
            raise ConfigError(f"checkpoint.{name} = {value!r} is loaded with checkpoint.enable = true only; set it.")
    if checkpoint.initial_load_in_hf_quantized and not checkpoint.initial_load_in_hf:
        raise ConfigError("checkpoint.initial_load_in_hf_quantized = true needs initial_load_in_hf = true.")


def check_profiling(job: MosaicJobConfig, facts: Facts) -> None:
    """A profile's cycle must have room for its warm-up and its recorded steps."""
    profiling = job.profiling
    if profiling.enable_profiling and profiling.profile_freq < profiling.profiler_warmup + profiling.profiler_active:
        raise ConfigError(
            f"profiling.profile_freq = {profiling.profile_freq}: must be at least profiler_warmup "
            f"{profiling.profiler_warmup} + profiler_active {profiling.profiler_active}."
        )


def check_early_step(job: MosaicJobConfig, facts: Facts) -> None:
    """An optimizer that steps in the backward pass takes each gradient as it arrives there."""
    if not job.optimizer.early_step_in_backward:
        return
    layout, training = job.parallelism, job.training
    degree = data_parallel_degree(job, facts.world_size)
    micro_batches = training.global_batch_size // (training.local_batch_size * degree)
    wrong = {
        "DDP, whose replicas are not averaged yet": layout.data_parallel_replicate_degree == facts.world_size > 1,
        f"{micro_batches} accumulated micro-batches, each of which would be a step": micro_batches > 1,
        "pipeline parallelism": layout.pipeline_parallel_degree > 1,
        "expert parallelism": layout.expert_parallel_degree > 1,
    }
    for what, here in wrong.items():
        if here:
            raise ConfigError(f"optimizer.early_step_in_backward = true cannot be combined with {what}.")
    if job.mosaic.nonfinite == "skip":
        raise ConfigError(
            'mosaic.nonfinite = "skip" passes over optimizer steps, and optimizer.early_step_in_backward has made them '
            'before the gradient norm is known: "stop" is right.'
        )


def check_comm_mode(job: MosaicJobConfig, facts: Facts) -> None:
    """One process can pretend to be one of several, as TorchTitan has it; what it saved would be a part."""
    mode = job.comm.mode
    if mode == "local_tensor":
        raise ConfigError(
            'comm.mode = "local_tensor": TorchTitan 0.2.2 builds the model in it and does not train; "fake_backend" '
            "tries a layout's steps in one process."
        )
    if mode == "default":
        return
    needs = {
        "the environment variable NGPU, the number of processes to pretend": os.environ.get("NGPU", "").isdecimal(),
        "one process": os.environ.get("WORLD_SIZE", "1") == "1",
        "checkpoint.enable = false, as the other processes' parts would be missing": not job.checkpoint.enable,
    }
    for need, here in needs.items():
        if not here:
            raise ConfigError(f'comm.mode = "{mode}" needs {need}.')


def check_packages(job: MosaicJobConfig, facts: Facts) -> None:
    """Packages that a setting needs must be there."""
    if job.metrics.enable_wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError("metrics.enable_wandb = true needs the package wandb (pip install wandb).")


def check_compile(job: MosaicJobConfig, facts: Facts) -> None:
    """What is compiled must be something that is, by a backend that torch knows."""
    for name in job.compile.components:
        if name not in COMPONENTS:
            raise ConfigError(f"compile.components: there is no component {name!r}.{nearest(name, COMPONENTS)}")
    backend = job.compile.backend
    if not job.compile.enable or backend == "inductor":
        return
    from torch._dynamo import list_backends

    known = list_backends(exclude_tags=())
    if backend not in known:
        raise ConfigError(f"compile.backend = {backend!r}.{nearest(backend, known)}")


def check_eval_loader(job: MosaicJobConfig, facts: Facts) -> None:
    """Validation must have data."""
    if job.validation.enable:
        eval_loaders_of(job)


def eval_loaders_of(job: MosaicJobConfig) -> dict[str, dict[str, Any]]:
    """The data config's eval loaders, by label.

    Raises:
        ConfigError: it has none.
    """
    if not job.mosaic.eval_dataloaders:
        raise ConfigError(
            f"validation.enable = true, but {job.mosaic.config or 'the data config'} has no eval loader; add a "
            "[mosaic_eval_dataloader] table, or one for each set, [mosaic_eval_dataloaders.NAME]."
        )
    return job.mosaic.eval_dataloaders
