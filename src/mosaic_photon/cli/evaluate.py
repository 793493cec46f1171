"""`mosaic-photon evaluate`: loss, perplexity and bits per byte of a checkpoint, and lm-eval's tasks."""

from __future__ import annotations

import argparse
import json
import logging
import math
from typing import TYPE_CHECKING, Any

from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    from mosaic_photon.use.checkpoint import JobModel
    from mosaic_photon.use.evaluate import Numbers, Sets
    from mosaic_photon.use.opened import Opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", metavar="CHECKPOINT_OR_EXPORT",
        help="a checkpoint, a folder of them, or a folder that `mosaic-photon export` wrote (default: the job's newest)"
    )  # fmt: skip
    add("--job", required=True, metavar="JOB.toml", help="job config that says which model this is")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--data", metavar="DATA", help="data config; its eval sets, as the job's validation reads them")
    data.add_argument("--mds", metavar="PATH", help="a folder of token shards, or of such folders: each is a set")
    data.add_argument("--text", metavar="PATH", help="text: a file or folder, as `mosaic-photon prepare` reads them")
    add("--tasks", metavar="A,B", help="tasks of EleutherAI's lm-eval (pip install 'mosaic-photon[eval]')")
    add("--include-path", metavar="DIR", help="a folder with task files beside lm-eval's own")
    add("--watch", action="store_true",
        help="evaluate each new checkpoint of the job as it comes, once, into the run's TensorBoard")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object instead of a line a set")


def run(args: argparse.Namespace) -> int:
    from mosaic_photon.use.checkpoint import job_model
    from mosaic_photon.use.opened import open_in_transformers

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    tasks = [name for name in (args.tasks or "").split(",") if name]
    if not (args.data or args.mds or args.text or tasks):
        raise ConfigError("say on what: --data DATA, --mds PATH, --text PATH or --tasks A,B.")
    if args.watch and args.model:
        raise ConfigError(f"--watch takes the job's own checkpoints, not {args.model!r}: leave it out.")
    manager = None
    if tasks:
        from mosaic_photon.use.tasks import find_tasks

        manager = find_tasks(tasks, args.include_path)
    job = job_model(args.job)
    sets = open_sets(job, args)

    def evaluate(path: str | None) -> tuple[str, Numbers]:
        opened = open_in_transformers(job, path)
        return opened.path, numbers_of(opened, sets, manager, tasks)

    if args.watch:
        from mosaic_photon.use.tasks import leaf_tasks
        from mosaic_photon.use.watch import watch

        names = [*sets, *(leaf_tasks(manager, tasks) if tasks else [])]
        watch(job.job, names, lambda path: show(*evaluate(path), args.json))
    else:
        show(*evaluate(args.model), args.json)
    return 0


def open_sets(job: JobModel, args: argparse.Namespace) -> Sets:
    """What there is to evaluate on, beside tasks."""
    from mosaic_photon.use.evaluate import sets_of_data, sets_of_shards, sets_of_text

    training, validation = job.job.training, job.job.validation
    if not validation.enable:  # nobody has said what its batches are
        validation.seq_len, validation.local_batch_size = training.seq_len, training.local_batch_size
    longest = getattr(job.args, "max_seq_len", validation.seq_len)
    if hasattr(job.args, "attn_config") and validation.seq_len > longest:
        raise ConfigError(f"validation.seq_len = {validation.seq_len}: an MPT of max_seq_len = {longest} ends there.")
    if args.text:
        return sets_of_text(job.job, args.text)
    if not (args.data or args.mds):
        return {}
    tokenizer = job.spec.build_tokenizer_fn(job.job)
    return sets_of_data(job.job, tokenizer, args.data) if args.data else sets_of_shards(job.job, tokenizer, args.mds)


def numbers_of(opened: Opened, sets: Sets, manager: Any, tasks: list[str]) -> Numbers:
    """Set or task -> what it came to."""
    from mosaic_photon.token_bytes import TokenBytes
    from mosaic_photon.use.evaluate import score

    table = TokenBytes.of(opened.tokenizer.backend_tokenizer)
    numbers: Numbers = {name: score(opened.logits, batches(), table).numbers() for name, batches in sets.items()}
    if tasks:
        from mosaic_photon.use.tasks import run_tasks

        rows = opened.job.job.validation.local_batch_size
        numbers |= run_tasks(opened.model, opened.tokenizer, manager, tasks, rows)
    return numbers


def show(path: str, numbers: Numbers, as_json: bool) -> Numbers:
    """Print what a checkpoint came to."""
    if as_json:
        alone = next(iter(numbers.values())) if len(numbers) == 1 else numbers
        print(json.dumps(finite({"checkpoint": path, **alone})), flush=True)
        return numbers
    print(path)
    for name, metrics in numbers.items():
        shown = (f"{metric} {value:.6g}" for metric, value in metrics.items() if value is not None)
        print(f"  {name}: {', '.join(shown)}", flush=True)
    return numbers


def finite(value: Any) -> Any:
    """With null for numbers that JSON has not: NaN and the infinities."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
