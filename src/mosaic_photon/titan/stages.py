"""How TorchTitan splits a model's layers into pipeline stages, and how many micro-batches torch's schedules ask for."""

import math

from torch.distributed.pipelining import schedules

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.layouts import generate_llm_fqn_per_model_part


def check_stages(job: MosaicJobConfig, facts: Facts) -> None:
    """The layers must fill the stages: TorchTitan's rules, with the settings' names in the message."""
    layout, n_layers = job.parallelism, getattr(facts.model_args, "n_layers", None)
    if layout.pipeline_parallel_degree == 1 or n_layers is None or layout.module_fqns_per_model_part:
        return
    degree, per_stage = layout.pipeline_parallel_degree, layout.pipeline_parallel_layers_per_stage
    ends = layout.pipeline_parallel_first_stage_less_layers, layout.pipeline_parallel_last_stage_less_layers
    schedule = schedules.get_schedule_class(layout.pipeline_parallel_schedule)
    single = issubclass(schedule, schedules.PipelineScheduleSingle)
    stages = degree * (1 if single else 2)
    if per_stage is not None:
        stages = math.ceil((n_layers + sum(ends)) / per_stage)
        fits = stages == degree if single else stages % degree == 0 and stages >= 2 * degree
        if not fits:
            wanted = "one" if single else "at least two"
            raise ConfigError(
                f"parallelism.pipeline_parallel_layers_per_stage = {per_stage} makes {stages} stages of {n_layers} "
                f"layers; {layout.pipeline_parallel_schedule} needs {wanted} on each of {degree} pipeline ranks."
            )
    try:
        generate_llm_fqn_per_model_part(stages, n_layers, *ends)
    except ValueError as error:
        raise ConfigError(
            f"parallelism.pipeline_parallel_degree = {degree} with {layout.pipeline_parallel_schedule} makes {stages} "
            f"stages, too many for a model of {n_layers} layers: {error}"
        ) from None
    if not layout.pipeline_parallel_schedule_csv:
        check_microbatches(job, stages)


def check_microbatches(job: MosaicJobConfig, stages: int) -> None:
    """torch's rules on the number of micro-batches of a schedule."""
    layout, training = job.parallelism, job.training
    schedule = schedules.get_schedule_class(layout.pipeline_parallel_schedule)
    micro = training.local_batch_size // layout.pipeline_parallel_microbatch_size
    where = (
        f"training.local_batch_size {training.local_batch_size} / pipeline_parallel_microbatch_size "
        f"{layout.pipeline_parallel_microbatch_size} makes {micro} micro-batch{'es' if micro > 1 else ''};"
        f" {layout.pipeline_parallel_schedule}"
    )
    if issubclass(schedule, schedules.Schedule1F1B | schedules.ScheduleDualPipeV) and micro < stages:
        raise ConfigError(f"{where} needs at least as many as there are stages, {stages}.")
    rounds = max(1, micro // layout.pipeline_parallel_degree)
    in_rounds = schedules.ScheduleInterleaved1F1B | schedules.ScheduleInterleavedZeroBubble
    if issubclass(schedule, in_rounds) and micro % rounds:
        raise ConfigError(f"{where} needs a multiple of {rounds}, the rounds of {layout.pipeline_parallel_degree}.")
