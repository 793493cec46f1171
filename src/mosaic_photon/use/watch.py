"""Each new checkpoint of a running job is evaluated once, and its numbers go to the run's TensorBoard."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection

from mosaic_photon.checkpoints.find import checkpoint_folder, is_complete, step_folders
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.use.checkpoint import is_whole
from mosaic_photon.use.evaluate import Numbers

SECONDS = 5.0
"""Between two looks at the folder."""


def tensorboard_folder(job: MosaicJobConfig) -> str:
    """Beside the folders of the run's own starts, so that TensorBoard shows both."""
    return os.path.join(job.job.dump_folder, job.metrics.save_tb_folder, "evaluate")


def watch(job: MosaicJobConfig, names: Collection[str], evaluate: Callable[[str], Numbers]) -> None:
    """Evaluate whole checkpoints as they come, until the one of the job config's last step, of whatever format.

    What has been evaluated is read from TensorBoard's files: a second process, or a later one, goes on from there.

    Args:
        names: of the sets and tasks in what `evaluate` gives, each of which must be there.
        evaluate: from a checkpoint's folder to its numbers.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder, log = checkpoint_folder(job), logging.getLogger(__name__)
    done = evaluated_steps(tensorboard_folder(job), names)
    with SummaryWriter(tensorboard_folder(job)) as writer:
        while True:
            steps = step_folders(folder)
            is_over = any(step >= job.training.steps and is_complete(path) for step, path in steps.items())
            for step, path in steps.items():
                if step in done or not is_whole(path):
                    continue
                done.add(step)
                try:
                    numbers = evaluate(path)
                except (ConfigError, OSError) as error:
                    if is_whole(path):
                        raise
                    log.warning(f"{path} was removed before it was evaluated (checkpoint.keep_latest_k): {error}")
                    continue
                for name, metrics in numbers.items():
                    for metric, value in metrics.items():
                        if value is not None:  # no bytes, no bits per byte
                            writer.add_scalar(f"evaluation/{name}/{metric}", value, step)
                writer.flush()
            if is_over:
                return
            time.sleep(SECONDS)


def evaluated_steps(folder: str, names: Collection[str]) -> set[int]:
    """Steps for which TensorBoard has numbers of each of these sets and tasks."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not os.path.isdir(folder):
        return set()
    events = EventAccumulator(folder, size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    steps: dict[str, set[int]] = {name: set() for name in names}
    for tag in events.Tags()["scalars"]:
        name = tag.removeprefix("evaluation/").rpartition("/")[0]
        if name in steps:
            steps[name] |= {event.step for event in events.Scalars(tag)}
    return set.intersection(*steps.values()) if steps else set()
