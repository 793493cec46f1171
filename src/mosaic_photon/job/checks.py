"""Every check of a job, in the order in which they are made, before any process group, model or file exists.

A check is a function of the job and of what else is known of it, and raises ConfigError. The job and the doctor run the
same list. It knows none of the parts: a part that has checks of its own hands them in, and its name says when they are
made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from mosaic_photon.job import layout_checks as layout
from mosaic_photon.job import machine_checks as machine
from mosaic_photon.job import value_checks as values
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import MosaicJobConfig

Check = Callable[[MosaicJobConfig, Facts], None]

ORDER: list[Check | str] = [
    values.check_ranges,
    values.check_micro_batches,
    values.check_refused,
    values.check_start_is_loaded,
    values.check_profiling,
    values.check_comm_mode,
    values.check_packages,
    values.check_compile,
    layout.check_layout,
    values.check_early_step,
    "dataloader",  # batches, patience, documents
    layout.check_sequences,
    layout.check_can_be_split,
    machine.check_devices,
    "models",  # sizes
    layout.check_tensor_parallel,
    layout.check_experts,
    layout.check_pipeline,
    "titan",  # stages
    layout.check_activation_checkpoint,
    machine.check_tokenizer,
    machine.check_model,
    machine.check_memory,
    values.check_eval_loader,
    machine.check_outputs,
    "optimizers",
    "callbacks",
    "checkpoints",
]
"""A name stands for the checks that this part hands in."""
WITH_DATA: list[Check | str] = ["schedulers"]
"""What can be told only when the data is open: the units of a schedule."""


def in_order(order: Sequence[Check | str], parts: Mapping[str, Sequence[Check]]) -> Iterator[Check]:
    """The checks of a list, with those that the parts hand in.

    Args:
        order: ORDER or WITH_DATA.
        parts: the parts' own checks, by the part's name.
    """
    for entry in order:
        yield from parts[entry] if isinstance(entry, str) else (entry,)
