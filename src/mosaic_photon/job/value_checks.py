"""Values that TorchTitan takes and fails on later, some after its last step: found before anything is built."""

import importlib.util
from typing import Any

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.job.facts import Facts
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
NOT_READ = {"experimental.custom_args_module": "job.custom_config_module"}
"""Fields that TorchTitan's config has and nothing reads."""


def field_of(job: MosaicJobConfig, name: str) -> Any:
    """The value of a field by its name, "table.field"."""
    table, field = name.split(".")
    return getattr(getattr(job, table), field)


def check_ranges(job: MosaicJobConfig, facts: Facts) -> None:
    """Numbers that have a least value, and the clipping norm."""
    for name, least in {**AT_LEAST, **ALL_OR_AT_LEAST}.items():
        value = field_of(job, name)
        if value is not None and value < least and not (name in ALL_OR_AT_LEAST and value == -1):
            also = ", or -1" if name in ALL_OR_AT_LEAST else ""
            raise ConfigError(f"{name} = {value}: must be at least {least}{also}.")
    if not job.training.max_norm > 0:
        raise ConfigError(f"training.max_norm = {job.training.max_norm}: must be above 0; inf clips nothing.")
    if job.parallelism.context_parallel_load_balancer == "":
        raise ConfigError("parallelism.context_parallel_load_balancer is empty: headtail, ptrr or None is right.")
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


def check_unread(job: MosaicJobConfig, facts: Facts) -> None:
    """A field that nothing reads must not be set."""
    for name, instead in NOT_READ.items():
        if value := field_of(job, name):
            raise ConfigError(f"{name} = {value!r}: TorchTitan does not read it; {instead} is right.")


def check_profiling(job: MosaicJobConfig, facts: Facts) -> None:
    """A profile's cycle must have room for its warm-up and its recorded steps."""
    profiling = job.profiling
    if profiling.enable_profiling and profiling.profile_freq < profiling.profiler_warmup + profiling.profiler_active:
        raise ConfigError(
            f"profiling.profile_freq = {profiling.profile_freq}: must be at least profiler_warmup "
            f"{profiling.profiler_warmup} + profiler_active {profiling.profiler_active}."
        )


def check_nonfinite(job: MosaicJobConfig, facts: Facts) -> None:
    """A step can be skipped only where it has not been made yet."""
    if job.mosaic.nonfinite == "skip" and job.optimizer.early_step_in_backward:
        raise ConfigError(
            'mosaic.nonfinite = "skip" passes over optimizer steps, and optimizer.early_step_in_backward has made them '
            'before the gradient norm is known: "stop" is right.'
        )


def check_packages(job: MosaicJobConfig, facts: Facts) -> None:
    """Packages and modules that a setting needs or names must be there."""
    if job.metrics.enable_wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError("metrics.enable_wandb = true needs the package wandb (pip install wandb).")
    module = job.experimental.custom_import
    try:
        found = not module or importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise ConfigError(f"experimental.custom_import = {module!r}: there is no such module.")


def check_compile_backend(job: MosaicJobConfig, facts: Facts) -> None:
    """torch.compile's backend must be one that torch knows."""
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
        eval_loader_of(job)


def eval_loader_of(job: MosaicJobConfig) -> dict[str, Any]:
    """The data config's eval loader.

    Raises:
        ConfigError: it has none.
    """
    if not job.mosaic.eval_dataloader:
        raise ConfigError(
            f"validation.enable = true, but {job.mosaic.config or 'the data config'} has no eval loader; add a "
            "[mosaic_eval_dataloader] table."
        )
    return job.mosaic.eval_dataloader
