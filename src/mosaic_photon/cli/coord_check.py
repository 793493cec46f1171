"""`mosaic-photon coord-check JOB.toml`: does the job's parametrization keep activations the same size?

Trains the job's model at several widths or depths for a few AdamW steps on the text of Python's standard library, with
the settings of CompleteP's reference and the job's own parameter groups and initial weights, and judges the slopes of
log mean |activation| against log size.
Exit code 0: pass, 1: fail, 3: too few seeds to tell.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import check_path, check_writable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mosaic_photon.mup.proxy import AdamWSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("job", metavar="JOB.toml", help="job config; its model, [model.overrides] and [mup] are checked")
    axis = parser.add_mutually_exclusive_group()
    axis.add_argument(
        "--widths",
        nargs="*",
        type=int,
        metavar="D",
        help="d_model of each run (128 256 512 1024, or from the first that the model's heads can have)",
    )
    axis.add_argument("--depths", nargs="*", type=int, metavar="L",
                      help="n_layers of each run, at [mup] base_width (2 4 8 16)")  # fmt: skip
    add("--seeds", type=int, default=3,
        help="runs per size, from which the slopes' intervals come; more follow, up to 12, while they cannot tell "
        "(default 3)")  # fmt: skip
    add("--steps", type=int, default=10, help="AdamW steps of each run (default 10)")
    add("--lr", type=float,
        help="learning rate of the base size (default 2e-3 for widths, 1e-3 for depths, at width 128; less at a "
        "larger base)")  # fmt: skip
    add("--no-mup", action="store_true", help="ignore [mup]: the standard parametrization, to see it fail")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add("--out", default="outputs/coord_check", metavar="DIR", help="folder for PNG, HTML and JSON (%(default)s)")


def run(args: argparse.Namespace) -> int:
    import torch
    from rich.console import Console
    from rich.progress import track

    from mosaic_photon import titan
    from mosaic_photon.job.machine_checks import fitting_tokenizer
    from mosaic_photon.models.resized import width_step
    from mosaic_photon.mup import coord_check, coord_report
    from mosaic_photon.mup.proxy import AdamWSettings
    from mosaic_photon.prepare.tokenization import stdlib_tokens
    from mosaic_photon.train_spec import load_job_model

    axis = "width" if args.depths is None else "depth"
    check_path("--out", args.out)
    check_writable("--out", args.out)
    titan.apply_workarounds()
    job, model_args = load_job_model(args.job)
    check_known(job)
    fitting_tokenizer(job, model_args)
    default = coord_check.DEFAULT_DEPTHS if axis == "depth" else coord_check.default_widths(width_step(model_args))
    sizes = sorted(set(args.depths or args.widths or default))
    if len(sizes) < 2 or sizes[0] < 1 or args.seeds < 1 or args.steps < 1:
        raise ConfigError("give at least two positive sizes, one seed and one step.")
    job.mup.enabled = job.mup.enabled and not args.no_mup
    job.training.seq_len = coord_check.SEQ_LEN
    job.parallelism = type(job.parallelism)()  # each run is one process
    job.debug.seed = None  # each run has its own
    job.validation.enable = False
    models = {size: model_of_size(job, model_args, axis, size) for size in sizes}
    tokens = torch.tensor(stdlib_tokens(job.model.hf_assets_path, 400_000))
    start, lr = time.monotonic(), args.lr or coord_check.default_lr(axis, job.mup)
    optimizer = partial(adamw, AdamWSettings(lr=lr), job.optimizer.no_decay)
    traces: list[coord_check.Trace] = []
    seeds: Sequence[int] = range(args.seeds)
    while seeds:
        runs = coord_check.check(models, tokens, optimizer, seeds, args.steps)
        console = Console(stderr=True)
        traces += track(runs, f"{axis}s {sizes}", len(sizes) * len(seeds), console=console)
        activations = coord_check.collect(axis, traces)
        verdict = coord_check.judge(activations)
        seeds = coord_check.more_seeds(verdict, seeds[-1] + 1)
    title = f"{job.model.name} {job.model.flavor}, {describe(job)}, lr {lr:g}, {len(activations.runs)} seeds"
    paths = coord_report.write(args.out, title, activations, verdict)
    if args.json:
        print(coord_report.to_json(title, activations, verdict))
        return verdict.exit_code
    console = Console()
    console.print(title, coord_report.table(activations), sep="\n", highlight=False)
    style = {"PASS": "green", "FAIL": "red"}.get(verdict.word, "yellow")
    console.print(str(verdict), style=style, highlight=False)
    console.print(f"{time.monotonic() - start:.0f} s; {', '.join(map(str, paths))}", highlight=False, soft_wrap=True)
    return verdict.exit_code


def adamw(hyper: AdamWSettings, no_decay: Sequence[str], model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with the groups that the job's optimizer would have on this model."""

    from mosaic_photon.job.tables import Optimizer
    from mosaic_photon.optimizers.builder import build_optimizers
    from mosaic_photon.titan.layouts import one_process

    beta1, beta2 = hyper.betas
    config = Optimizer(lr=hyper.lr, beta1=beta1, beta2=beta2, eps=hyper.eps, weight_decay=hyper.weight_decay)
    config.no_decay = list(no_decay)
    return build_optimizers([model], config, one_process()).optimizers[0]


def check_known(job: Any) -> None:
    """The job's model must be one that can be resized and run by itself."""
    if job.model.name not in ("mpt_mup_mosaic", "llama3_mosaic"):
        raise ConfigError(f"coord-check knows mpt_mup_mosaic and llama3_mosaic, not {job.model.name}.")


def model_of_size(job: Any, model_args: Any, axis: str, size: int) -> Callable[[int], nn.Module]:
    """seed -> the initialised model of one size, `[mup]` applied."""
    from mosaic_photon.models.model_args import build_on_meta
    from mosaic_photon.models.resized import build, resized
    from mosaic_photon.train_spec import apply_mup, build_train_spec

    base_width = job.mup.base_width if axis == "depth" else None
    spec, flavor = build_train_spec(job.model.name), job.model.flavor
    width, depth = (size, None) if axis == "width" else (base_width, size)
    spec.model_args[flavor] = resized(model_args, width, depth)
    if job.mup.enabled:
        apply_mup(spec, job)
    build_on_meta(job, spec)  # for its checks
    args = spec.model_args[flavor]
    args.update_from_config(job)
    return partial(build, spec.model_cls, args)


def describe(job: Any) -> str:
    if not job.mup.enabled:
        return "standard parametrization"
    return f"muP base {job.mup.base_width}, depth base {job.mup.base_depth}, alpha {job.mup.depth_alpha:g}"
