"""EleutherAI's lm-eval on a model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mosaic_photon.errors import ConfigError, ask_upstream, nearest_if_close


def find_tasks(names: Sequence[str], include_path: str | None) -> Any:
    """lm-eval's manager of tasks, which knows all of these.

    Args:
        include_path: a folder of task files beside lm-eval's own.

    Raises:
        ConfigError: lm-eval is not installed, or there is no such task.
    """
    try:
        import lm_eval.models.huggingface  # noqa: F401  (what it needs is an extra of lm-eval's)
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(f"--tasks needs lm-eval (pip install 'mosaic-photon[eval]'): {error}.") from error

    refused, kinds = f"--include-path {include_path!r}", (Exception,)
    if include_path is not None:  # lm-eval's own tasks are thousands of files: seconds
        manager = ask_upstream(refused, kinds, TaskManager, include_path=include_path, include_defaults=False)
        if all(manager.match_tasks([name]) for name in names):
            return manager
    manager = ask_upstream(refused, kinds, TaskManager, include_path=include_path)
    for name in names:
        if not manager.match_tasks([name]):
            close = nearest_if_close(name, manager.all_tasks)
            raise ConfigError(f"--tasks: lm-eval has no task {name!r}.{close} `lm-eval ls tasks` lists all of them.")
    return manager


def leaf_tasks(manager: Any, names: Sequence[str]) -> list[str]:
    """The tasks that patterns, tags and groups stand for, by the names that lm-eval's results have.

    Raises:
        ConfigError: a task's data cannot be had, or it is in two of the groups.
    """
    matched = manager.match_tasks(list(names))
    return list(ask_upstream(f"--tasks {','.join(names)}", (OSError, ValueError), manager.load, matched)["tasks"])


def run_tasks(model: Any, tokenizer: Any, manager: Any, names: Sequence[str], rows: int) -> dict[str, dict[str, float]]:
    """Task -> metric -> value, as lm-eval's own `hf` model gives them.

    Args:
        model: of transformers, in the memory of its device.
        manager: as `find_tasks` gives it.
        rows: sequences of a batch.

    Raises:
        ConfigError: a task's data cannot be had.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    longest = getattr(model.config, "max_seq_len", None)  # an MPT's, which lm-eval does not look for
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=rows, max_length=longest)
    matched = manager.match_tasks(list(names))
    found = ask_upstream(
        f"--tasks {','.join(names)}", (OSError,), simple_evaluate, lm, tasks=matched, task_manager=manager,
        log_samples=False,
    )  # fmt: skip
    return {
        task: {metric.removesuffix(",none"): value for metric, value in results.items() if isinstance(value, float)}
        for task, results in found["results"].items()
    }
