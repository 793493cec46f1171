"""`mosaic-photon trace`: which samples a step sees, which steps see a sample or a text, and a step once more."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from mosaic_photon.cli.terminal import bar, check_text, console, printable
from mosaic_photon.errors import ConfigError, NotFiniteError

if TYPE_CHECKING:
    from mosaic_photon.job.tables import MosaicJobConfig
    from mosaic_photon.train.replay import Replayed
    from mosaic_photon.use.trace import Dealt, Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("job", metavar="JOB.toml", help="job config")
    add("data", metavar="DATA.toml", help="data config, TOML or llm-foundry's YAML")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--step", metavar="N", help="the samples of a step, as TorchTitan prints it; or of steps, 1200-1210"
    )
    what.add_argument("--sample", metavar="STREAM:N", help="the steps that see sample N of a stream, counted from 0")
    what.add_argument("--text", metavar="TEXT", help="the steps that see a sample with this text in it")
    add("--nnodes", type=int, metavar="N", help="machines the job has (default 1): says who gets which sample")
    add("--nproc-per-node", type=int, metavar="N", help="processes on each (default: as few as the job can have)")
    more = parser.add_mutually_exclusive_group()
    more.add_argument("--checkpoint", metavar="CHECKPOINT",
        help="add each sample's loss by these weights, worst first: a checkpoint, or a folder of them")  # fmt: skip
    more.add_argument("--replay", action="store_true",
        help="run the step again, from the checkpoint before it, in the layout that this command is started in, "
        "and print its loss and gradient norm")  # fmt: skip
    add("--full", action="store_true", help="show all of each sample's text")
    add("--json", action="store_true", help="print a JSON list instead of tables")
    flags = "fields of the job, after `--`: they win over the job config; `-- --help` lists all"
    add("flags", nargs="*", default=[], metavar="-- --TABLE.FIELD=VALUE", help=flags)


def run(args: argparse.Namespace) -> int:
    from mosaic_photon.job.load import load_job

    if args.replay:
        return replay(args)
    job = load_job(args.job, args.data, args.flags)
    with opened(args, job) as run:
        look = Look(args, run)
        look.show(look.dealt())
    return 0


@contextmanager
def opened(args: argparse.Namespace, job: MosaicJobConfig) -> Iterator[Run]:
    """The job's run, closed behind its use."""
    from mosaic_photon.use.trace import open_run

    run = open_run(
        job, 1 if args.nnodes is None else args.nnodes, args.nproc_per_node, read=args.checkpoint is not None
    )
    try:
        yield run
    finally:
        run.close()


class Look:
    """What is asked of a run, and how it is shown."""

    def __init__(self, args: argparse.Namespace, run: Run) -> None:
        self.args, self.run = args, run
        self.losses = self._losses() if args.checkpoint else None

    def dealt(self) -> Iterable[Dealt]:
        """The steps, each with its samples that are asked for."""
        from mosaic_photon.use.trace import steps_of

        args, run = self.args, self.run
        if args.step is not None:
            steps = steps_of(args.step)
            run.batch_of(steps[0]), run.batch_of(steps[-1])  # before the first is shown
            return map(run.deal, steps)
        ids = [run.sample_id(args.sample)] if args.sample is not None else self._with_text(args.text)
        found = self._seeing(ids)
        if not found:
            others = f" or the {len(ids) - 1:,} others with this text" if len(ids) > 1 else ""
            count = run.job.training.steps
            print(f"none of the job's {count:,} steps sees {run.dataset.name_of(ids[0])}{others}", file=sys.stderr)
        return found

    def show(self, steps: Iterable[Dealt]) -> None:
        """Print each step as it is known."""
        from mosaic_photon.report.record import plain

        if self.args.json:
            print("[", end="")
            for number, dealt in enumerate(steps):
                entry = {"step": dealt.step, "batch": dealt.batch, "samples": self._samples(dealt)}
                text = json.dumps(plain(entry), ensure_ascii=False)
                print(",\n " if number else "", text, sep="", end="", flush=True)
            print("]")
            return
        for dealt in steps:
            print_step(dealt, self._samples(dealt), self.args.full)

    def _samples(self, dealt: Dealt) -> list[dict[str, Any]]:
        samples = self.run.described(dealt, self.args.full)
        if self.losses is None:
            return samples
        from mosaic_photon.use.trace_losses import worst_first

        return worst_first(samples, self.losses(dealt))

    def _losses(self) -> Callable[[Dealt], list[float | None]]:
        """Of each sample of a step, by the checkpoint's weights."""
        from mosaic_photon.use.checkpoint import job_model
        from mosaic_photon.use.opened import open_in_transformers
        from mosaic_photon.use.trace_losses import losses_of

        model = job_model(self.args.job, self.args.flags)
        model.job.mosaic.dataloader = self.run.job.mosaic.dataloader  # which says what is between documents
        opened = open_in_transformers(model, self.args.checkpoint)
        return lambda dealt: losses_of(self.run, dealt, opened)

    def _with_text(self, text: str) -> list[int]:
        from mosaic_photon.use.trace_text import find_text

        if not text:
            raise ConfigError("--text is empty: give some words of the sample.")
        check_text("--text", text)
        with bar("searching", self.run.dataset.num_samples) as advance:
            ids = find_text(self.run, text, advance)
        if not ids:
            raise ConfigError(
                f"--text {text!r} is nowhere in the {self.run.dataset.num_samples:,} samples. A text that goes on in "
                "the next sample is not found: try fewer words of it."
            )
        return ids

    def _seeing(self, ids: list[int]) -> list[Dealt]:
        import numpy as np

        if unknown := self.run.first_known:
            print(f"note: what the first {unknown:,} batches were is not known, the data were others", file=sys.stderr)
        with bar("steps", self.run.job.training.steps) as advance:
            return list(self.run.seen(np.array(ids), advance))


def print_step(dealt: Dealt, samples: list[dict[str, Any]], full: bool) -> None:
    """A table of a step's samples; with `full` each with all of its text beneath."""
    from rich.markup import escape
    from rich.table import Table

    out = console()
    batch = f", batch {dealt.batch:,} of the plan" if dealt.batch != dealt.step else ""
    out.print(
        f"[bold]step {dealt.step:,}[/]{batch}: {len(samples):,} sample{'' if len(samples) == 1 else 's'}",
        highlight=False,
    )
    names = ["rank", "micro_batch", "stream", "shard", "index", "sample", "tokens"]
    names += ["loss"] if samples and "loss" in samples[0] else []
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(
            name.replace("_", "-"), justify="left" if name in ("stream", "shard") else "right", no_wrap=True
        )
    if not full:
        table.add_column("text", no_wrap=True, overflow="ellipsis")
    for sample in samples:
        cells = [escape(shown(sample[name])) for name in names]
        if full:
            head = ", ".join(f"{name.replace('_', '-')} {cell}" for name, cell in zip(names, cells, strict=True))
            out.print(f"[bold]{head}[/]", highlight=False, soft_wrap=True)
            out.print(escape(printable(sample["text"], "\n")), highlight=False, soft_wrap=True)
        else:
            table.add_row(*cells, escape(printable(sample["text"])))
    if not full:
        out.print(table, highlight=False)


def shown(value: Any) -> str:
    """A cell of the table."""
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def replay(args: argparse.Namespace) -> int:
    """Run the steps again and print what they came to, on one rank."""
    import tempfile
    from functools import partial

    if args.step is None or args.nnodes is not None or args.nproc_per_node is not None:
        raise ConfigError(
            "--replay takes --step alone, and its layout from torchrun: "
            "`torchrun --nproc_per_node=N -m mosaic_photon.cli trace ...`."
        )
    from mosaic_photon.train_with_mosaic import be_one_process, report, run

    be_one_process()
    from mosaic_photon.job.load import load_job
    from mosaic_photon.use.trace import steps_of

    steps = steps_of(args.step)
    found: list[Replayed] = []
    code = 1
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory(prefix="mosaic-photon-replay-") as scratch:
        try:
            job = load_job(args.job, args.data, args.flags)
            check_steps(job, steps)
            from mosaic_photon.train.replay import ReplayLoop, as_replay

            code = run(as_replay(job, steps[0], scratch), partial(ReplayLoop, steps=steps, found=found)).exit_code
        except (ConfigError, NotFiniteError) as error:
            report(error)
    if os.environ["RANK"] == "0" and (found or not code):
        print_replayed(found, args.json)
    return code


def check_steps(job: MosaicJobConfig, steps: range) -> None:
    """Raises ConfigError for steps that the job does not have."""
    for step in (steps[0], steps[-1]):
        if not 1 <= step <= job.training.steps:
            raise ConfigError(f"--step {step}: the job has the steps 1 to {job.training.steps:,} (training.steps).")


def print_replayed(found: list[Replayed], as_json: bool) -> None:
    """The numbers of each step, with all their digits."""
    from dataclasses import asdict

    from mosaic_photon.report.record import plain

    if as_json:
        print(json.dumps(plain([asdict(step) for step in found]), indent=1))
        return
    for step in found:
        if step.loss is None:
            print(f"step {step.step:,}: made no optimizer step")
        else:
            print(f"step {step.step:,}: loss {step.loss:.9g}, gradient norm {step.grad_norm:.9g}")
