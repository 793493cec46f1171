"""`mosaic-photon schedule JOB.toml`: learning rate, momentum and weight decay of a job's steps, without a run.

The model is built on the meta device, so that the learning rate is shown for each parameter group. With a data config
its indexes are read, and shares, tokens and passes of its streams are shown beside.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mosaic_photon.cli.terminal import console
from mosaic_photon.errors import ConfigError
from mosaic_photon.files import check_path, check_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("job", metavar="JOB.toml", help="job config; its [optimizer], [lr_scheduler], [training] and model are read")
    add("data", metavar="DATA.toml", nargs="?", help="data config: shares, tokens and passes of its streams, too")
    add("--out", default="outputs/schedule", metavar="DIR", help="folder for schedule.png (%(default)s)")
    add("--no-files", action="store_true", help="draw in the terminal only")
    add("--batch", type=int, metavar="N", help="samples of a step, where the job leaves it to the number of GPUs")
    add("--epoch-batches", type=int, metavar="N", help="steps of an epoch, for times in 'ep'")


def run(args: argparse.Namespace) -> int:
    from rich.table import Table

    from mosaic_photon.schedulers import preview

    if not args.no_files:
        check_path("--out", args.out)
        check_writable("--out", args.out)
    shown = preview_of(args.job, args.batch, args.epoch_batches, args.data)
    out = console()
    out.print(f"[bold]{shown.title}[/bold]\n{shown.schedule}", highlight=False)
    heading, *body = preview.rows(shown)
    table = Table()
    for name in heading:
        table.add_column(name, overflow="fold")
    for cells in body:
        table.add_row(*cells)
    out.print(table)
    for name, curves in shown.panels():
        print(f"\n{name}\n{preview.drawing(shown.steps, curves)}")
    marks = ", ".join(f"{preview.MARKS[n % len(preview.MARKS)]} {name}" for n, name in enumerate(shown.streams))
    for name, curves in shown.of_streams:
        print(f"\n{name} ({marks})\n{preview.drawing(shown.steps, curves)}")
    if not args.no_files:
        print(f"wrote {write(args.out, shown)}")
    return 0


def write(folder: str, shown: Any) -> Path:
    """Write schedule.png below `folder`; returns its path."""
    from mosaic_photon.files import write_whole
    from mosaic_photon.schedulers import preview

    path = Path(folder) / "schedule.png"
    write_whole(path, preview.figure(shown))
    return path


def preview_of(job_path: str, batch: int | None, epoch_batches: int | None, data_path: str | None = None) -> Any:
    """The job's schedule for every parameter group.

    Raises:
        ConfigError: as the job itself would for its model, optimizer and schedule.
    """
    from mosaic_photon.train_spec import load_job_model

    for option, value in (("--batch", batch), ("--epoch-batches", epoch_batches)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} {value}: must be at least 1.")
    job, _ = load_job_model(job_path)

    from mosaic_photon.job.run_length import RunLength
    from mosaic_photon.models.model_args import build_on_meta
    from mosaic_photon.optimizers.builder import build_optimizers
    from mosaic_photon.schedulers.builder import build_lr_schedulers
    from mosaic_photon.schedulers.preview import Preview, sampled_steps
    from mosaic_photon.titan.layouts import one_process
    from mosaic_photon.train_spec import spec_of_job

    if job.training.steps < 1:
        raise ConfigError(f"training.steps = {job.training.steps}: must be at least 1.")
    model = build_on_meta(job, spec_of_job(job))
    samples = job.training.global_batch_size if job.training.global_batch_size > 0 else batch
    run = RunLength(job.training.steps, samples, samples and samples * job.training.seq_len, epoch_batches)
    job.optimizer.early_step_in_backward = False  # the same numbers, in a container without groups
    optimizers = build_optimizers([model], job.optimizer, one_process())
    schedulers = build_lr_schedulers(optimizers, job.lr_scheduler, run.steps, run)
    multiplier = schedulers.schedulers[0].lr_lambdas[0]
    steps = sampled_steps(run.steps)
    factors = [multiplier(int(step)) for step in steps]
    optimizer = optimizers.optimizers[0]
    kind = decay_kind(optimizer)
    names = {p: name for name, p in model.named_parameters()}
    groups = [group_preview(group, names, factors, kind) for group in optimizer.param_groups]
    title = f"{job.model.name} {job.model.flavor}, {job.optimizer.name}, {run.steps:,} steps"
    kwargs = " ".join(f"{key}={value}" for key, value in job.lr_scheduler.kwargs.items())
    schedule = f"{job.lr_scheduler.name or 'the schedule of TorchTitan'} {kwargs}".strip()
    streams, panels = ((), ()) if data_path is None else stream_panels(job, data_path, samples, steps)
    return Preview(title, schedule, steps, groups, kind, streams, panels)


def stream_panels(job: Any, path: str, batch: int | None, steps: Any) -> tuple[Any, Any]:
    """The names of the data's streams; name and curves of what a run of the job reads of them, at these steps.

    Raises:
        ConfigError: the data cannot be read, or the samples of a step are not known.
    """
    import numpy as np

    from mosaic_photon.dataloader.inspection import open_dataset
    from mosaic_photon.dataloader.loader import plan_of_data
    from mosaic_photon.dataloader.order.skips import Skips
    from mosaic_photon.job.data_config import load_data_config
    from mosaic_photon.job.run_length import RunLength

    if batch is None:
        raise ConfigError("training.global_batch_size is left to the number of GPUs; give --batch N.")
    config = load_data_config(path)
    dataset = open_dataset(config.train)
    run = RunLength(job.training.steps, batch, batch * job.training.seq_len)
    skips = Skips.parse(job.mosaic.skip_batches)
    plan = plan_of_data(dataset, config, run, skips, job.mosaic.node_folder)
    batches = [*(skips.batch_of(int(step)) for step in steps), skips.end_of(job.training.steps)]
    passes = np.array([plan.passes(batch) for batch in batches])
    passed_over = [
        sum((plan.passes(end) - plan.passes(begin) for begin, end in skips.before(batch).ranges), 0 * passes[0])
        for batch in batches
    ]
    read = (passes - passed_over) * dataset.samples_per_stream
    apart = np.diff([*steps, job.training.steps])[:, None] * batch
    curves = {"share of a step": np.diff(read, axis=0) / apart, "tokens": read[:-1] * job.training.seq_len}
    curves["passes"] = passes[:-1]
    return plan.names, [(name, list(curve.T)) for name, curve in curves.items()]


def decay_kind(optimizer: Any) -> str:
    """How the optimizer applies weight decay: a key of `preview.DECAY_KINDS`."""
    from torch.optim import Adam, AdamW

    from mosaic_photon.optimizers import ADOPT, QHADOPT

    if isinstance(optimizer, QHADOPT) and not optimizer.param_groups[0]["decouple"]:
        return "coupled"
    if isinstance(optimizer, ADOPT):
        return "times lr"
    if type(optimizer) in (Adam, AdamW):
        return "times lr" if optimizer.param_groups[0]["decoupled_weight_decay"] else "coupled"
    return "follows lr"  # Composer's and llm-foundry's


def group_preview(group: dict[str, Any], names: dict[Any, str], factors: list[float], kind: str) -> Any:
    """One parameter group's numbers and curves."""
    import numpy as np

    from mosaic_photon.schedulers.preview import Group

    peak, decay, factor = float(group["initial_lr"]), float(group.get("weight_decay", 0.0)), np.asarray(factors)
    curves = {"coupled": decay * np.ones(len(factor)), "times lr": peak * factor * decay, "follows lr": factor * decay}
    momentum = dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))
    return Group(
        label=label([names[p] for p in group["params"]]),
        parameters=sum(p.numel() for p in group["params"]),
        peak_lr=peak,
        weight_decay=decay,
        eps=group.get("eps"),
        momentum=momentum | ({"v1": group["v1"]} if "v1" in group else {}),
        lr=peak * factor,
        decay=curves[kind],
    )


def label(names: list[str]) -> str:
    """The first name, layer numbers as *, and how many kinds of names follow it."""
    kinds = list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names))
    return kinds[0] if len(kinds) == 1 else f"{kinds[0]} + {len(kinds) - 1} more"
