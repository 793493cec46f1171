"""Settings that do nothing, or not all that they seem to: a line each, said by the job and by the doctor.

A field beside a switch of its own table that is off (`validation.freq` without `validation.enable`) is not in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mosaic_photon.job.facts import Facts
from mosaic_photon.job.layout_checks import has_experts
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.job.value_checks import field_of, fields_in


@dataclass(frozen=True)
class Remark:
    """What is said of fields that are set to another value than their default."""

    fields: str
    """Names of fields, or of tables for all fields in them; separated by spaces."""
    says: str
    when: Callable[[MosaicJobConfig, Facts], bool] = lambda job, facts: True


DATA = "does nothing: the data config (--mosaic-config) says what is {} and how it is loaded"
FT = "does nothing: TorchTitan trains with TorchFT by a trainer of its own, and not by this one"
NOT_NCCL = "does nothing: it is of NCCL's flight recorder, and this machine has no accelerator"
NO_CONVERTER = "does nothing: model.converters lacks {!r}"
CONVERTERS = ("quantize.linear.float8", "quantize.linear.mx", "quantize.grouped_mm.float8", "quantize.grouped_mm.mx")


def lacks_converter(name: str, job: MosaicJobConfig, facts: Facts) -> bool:
    return name not in job.model.converters


REMARKS = [
    Remark("training.dataset training.dataset_path training.dataloader", DATA.format("trained on")),
    Remark("validation.dataset validation.dataset_path validation.dataloader", DATA.format("validated on")),
    Remark(
        "model.tokenizer_path",
        "is the old name of model.hf_assets_path, and has been taken for it",
    ),
    Remark(
        "optimizer.early_step_in_backward",
        "clips no gradients (training.max_norm does nothing), and their norm is logged as 0",
    ),
    Remark(
        "comm.mode",
        "pretends the other processes: losses and norms mean nothing, only that the layout is built and steps are made",
    ),
    Remark("memory_estimation.disable_fake_mode", "does nothing: TorchTitan 0.2.2 estimates no memory"),
    Remark("fault_tolerance checkpoint.enable_ft_dataloader_checkpoints", FT),
    Remark(
        "comm.trace_buf_size comm.save_traces_folder comm.save_traces_file_prefix",
        NOT_NCCL,
        lambda job, facts: facts.on_cpu,
    ),
    Remark(
        "parallelism.context_parallel_rotate_method",
        "does nothing: TorchTitan 0.2.2 hands it to its own validator alone",
    ),
    Remark(
        "parallelism.context_parallel_load_balancer",
        "does nothing: parallelism.context_parallel_degree is 1",
        lambda job, facts: job.parallelism.context_parallel_degree == 1,
    ),
    Remark(
        "parallelism.pipeline_parallel_expert_parallel_overlap",
        'does nothing: it is for parallelism.pipeline_parallel_schedule = "DualPipeV"',
        lambda job, facts: job.parallelism.pipeline_parallel_schedule.lower() != "dualpipev",
    ),
    Remark(
        "checkpoint.export_dtype",
        "does nothing: the last checkpoint is a whole one, as checkpoint.last_save_model_only is false",
        lambda job, facts: not job.checkpoint.last_save_model_only,
    ),
    Remark(
        "debug.moe_force_load_balance",
        "does nothing: the model has no experts, or TorchTitan has it not for this one",
        lambda job, facts: not has_experts(facts.model_args) or job.model.name == "gpt_oss_mosaic",
    ),
    *(Remark(name, NO_CONVERTER.format(name), partial(lacks_converter, name)) for name in CONVERTERS),
]


def remarks_on(job: MosaicJobConfig, facts: Facts) -> list[str]:
    """What is to be said of the job, a line for each setting."""
    default = type(job)()
    return [
        f"{name} = {value!r} {remark.says}."
        for remark in REMARKS
        if remark.when(job, facts)
        for field in remark.fields.split()
        for name in fields_in(job, field)
        if (value := field_of(job, name)) != field_of(default, name)
    ]
