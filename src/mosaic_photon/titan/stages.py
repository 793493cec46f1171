"""How TorchTitan splits a model's layers into pipeline stages, and how many micro-batches torch's schedules ask for."""

import csv
import math

import torch.nn as nn
from torch.distributed.pipelining import schedules

from mosaic_photon.errors import ConfigError, ask_upstream
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.layouts import generate_llm_fqn_per_model_part
from mosaic_photon.titan.v03.names import OF_ENDS

BY_NAME = "parallelism.module_fqns_per_model_part"


def check_stages(job: MosaicJobConfig, facts: Facts) -> None:
    """The layers must fill the stages: TorchTitan's rules, with the settings' names in the message."""
    layout, n_layers = job.parallelism, getattr(facts.model_args, "n_layers", None)
    if layout.pipeline_parallel_degree == 1 or n_layers is None:
        return
    if layout.module_fqns_per_model_part is not None:
        check_modules(layout.module_fqns_per_model_part, facts.model)
        stages = len(layout.module_fqns_per_model_part)
        check_stages_of_ranks(job, stages, f"{BY_NAME} makes {stages} stages")
    else:
        stages = stages_of_layers(job, n_layers)
    if layout.pipeline_parallel_schedule_csv:
        check_csv(job, stages)
    else:
        check_microbatches(job, stages)


def stages_of_layers(job: MosaicJobConfig, n_layers: int) -> int:
    """How many stages TorchTitan shares the layers out to.

    Raises:
        ConfigError: they do not fill the stages, or the ranks cannot share the stages out.
    """
    layout = job.parallelism
    degree, per_stage = layout.pipeline_parallel_degree, layout.pipeline_parallel_layers_per_stage
    ends = layout.pipeline_parallel_first_stage_less_layers, layout.pipeline_parallel_last_stage_less_layers
    stages = degree * (1 if one_stage_each(job) else 2)
    if per_stage is not None:
        stages = math.ceil((n_layers + sum(ends)) / per_stage)
        made = f"{per_stage} makes {stages} stages of {n_layers} layers"
        check_stages_of_ranks(job, stages, f"parallelism.pipeline_parallel_layers_per_stage = {made}")
    try:
        generate_llm_fqn_per_model_part(stages, n_layers, *ends)
    except ValueError as error:
        raise ConfigError(
            f"parallelism.pipeline_parallel_degree = {degree} with {layout.pipeline_parallel_schedule} makes {stages} "
            f"stages, too many for a model of {n_layers} layers: {error}"
        ) from None
    return stages


def one_stage_each(job: MosaicJobConfig) -> bool:
    """Whether the schedule gives a rank one stage."""
    schedule = schedules.get_schedule_class(job.parallelism.pipeline_parallel_schedule)
    return issubclass(schedule, schedules.PipelineScheduleSingle)


def check_stages_of_ranks(job: MosaicJobConfig, stages: int, made: str) -> None:
    """Each rank must get as many stages as the schedule asks for. `made` opens the message."""
    layout = job.parallelism
    degree, single = layout.pipeline_parallel_degree, one_stage_each(job)
    if not (stages == degree if single else stages % degree == 0 and stages >= 2 * degree):
        wanted = "one" if single else "at least two"
        raise ConfigError(
            f"{made}; {layout.pipeline_parallel_schedule} needs {wanted} on each of {degree} pipeline ranks."
        )


def check_modules(stages: list[list[str]], model: nn.Module) -> None:
    """Each part of the model must be in a stage: what is in none would be gone."""
    containers = nn.ModuleList | nn.ModuleDict
    there = [
        OF_ENDS.job(f"{name}.{key}" if key else name)
        for name, child in model.named_children()
        for key in (dict(child.named_children()) if isinstance(child, containers) else [""])
    ]
    given = [name for stage in stages for name in stage]
    stage_of = {name: number for number, stage in enumerate(stages) for name in stage}
    order = [stage_of.get(name, -1) for name in there]
    faults = {
        "the model has no": sorted({*given} - {*there}),
        "in no stage": [name for name in there if name not in given],
        "in several stages": sorted({name for name in given if given.count(name) > 1}),
        "a stage is empty": [] if all(stages) else ["[]"],
        "not in the model's order": [] if order == sorted(order) else [" ".join(there)],
    }
    for fault, names in faults.items():
        if names:
            raise ConfigError(
                f"{BY_NAME}: {fault}: {', '.join(names)}. Of the model's parts each is in one stage, in the order of "
                f'the ranks: [["{there[0]}", ...], [..., "{there[-1]}"]], or as a flag {there[0]},... ...,{there[-1]}.'
            )


def check_csv(job: MosaicJobConfig, stages: int) -> None:
    """A schedule that is written out must be one of these stages, ranks and micro-batches."""
    layout = job.parallelism
    path, said = layout.pipeline_parallel_schedule_csv, "parallelism.pipeline_parallel_schedule_csv"
    micro = job.training.local_batch_size // layout.pipeline_parallel_microbatch_size

    def read() -> None:
        with open(path or "", newline="") as file:
            actions = {rank: [*map(schedules._Action.from_str, row)] for rank, row in enumerate(csv.reader(file))}
        schedules._validate_schedule(actions, layout.pipeline_parallel_degree, stages, micro)

    kinds = (RuntimeError, ValueError, AssertionError)
    ask_upstream(f"{said} = {path!r} is no schedule of {stages} stages and {micro} micro-batches", kinds, read)


def check_microbatches(job: MosaicJobConfig, stages: int) -> None:
    """torch's rules on the number of micro-batches of a schedule."""
    layout, training = job.parallelism, job.training
    schedule = schedules.get_schedule_class(layout.pipeline_parallel_schedule)
    micro = training.local_batch_size // layout.pipeline_parallel_microbatch_size
    where = (
        f"training.local_batch_size = {training.local_batch_size} with pipeline_parallel_microbatch_size = "
        f"{layout.pipeline_parallel_microbatch_size} makes {micro} micro-batch{'es' if micro > 1 else ''};"
        f" {layout.pipeline_parallel_schedule}"
    )
    if issubclass(schedule, schedules.Schedule1F1B | schedules.ScheduleDualPipeV) and micro < stages:
        raise ConfigError(f"{where} needs at least as many as there are stages, {stages}.")
    rounds = max(1, micro // layout.pipeline_parallel_degree)
    in_rounds = schedules.ScheduleInterleaved1F1B | schedules.ScheduleInterleavedZeroBubble
    if issubclass(schedule, in_rounds) and micro % rounds:
        raise ConfigError(f"{where} needs a multiple of {rounds}, the rounds of {layout.pipeline_parallel_degree}.")
