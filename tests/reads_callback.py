"""Callbacks that jobs name as `reads_callback:Class`: what each rank trains on is written down, or a signal sent."""

import json
import os
from pathlib import Path

import torch
from composer.core import Callback, State
from composer.loggers import Logger


class Reads(Callback):
    """Writes `rank-N.jsonl`, a line a micro-batch: [inputs, labels]."""

    def __init__(self, folder: str, ranks_of_node: int) -> None:
        """`ranks_of_node`: nodes are told apart before the data is dealt; here all of them are on one machine."""
        rank = int(os.environ["RANK"])
        os.environ["GROUP_RANK"] = str(rank // ranks_of_node)
        self.path = Path(folder, f"rank-{rank}.jsonl")

    def before_forward(self, state: State, logger: Logger) -> None:
        rows = state.batch["input_ids"].tolist(), state.batch["labels"].tolist()
        with self.path.open("a") as file:
            file.write(json.dumps(rows) + "\n")


def read_by(folder: Path, rank: int) -> list[list[list[list[int]]]]:
    """What `Reads` has written of a rank: [inputs, labels] of each micro-batch."""
    return [json.loads(line) for line in (folder / f"rank-{rank}.jsonl").read_text().splitlines()]


def trained_by(folder: Path, rank: int) -> list[list[int]]:
    """The samples of each of its micro-batches, of `mds_data.write_mds`."""
    from mds_data import numbers

    return [
        numbers(({"input": torch.tensor(inputs)}, torch.tensor(labels))) for inputs, labels in read_by(folder, rank)
    ]


class Interrupts(Callback):
    """Sends this process a signal in a step, counted from 1."""

    def __init__(self, number: int, step: int = 2) -> None:
        self.number, self.step = number, step

    def before_forward(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == self.step - 1:
            os.kill(os.getpid(), self.number)


class LogsTokens(Callback):
    """Logs a metric of its own at each step."""

    def batch_end(self, state: State, logger: Logger) -> None:
        logger.log_metrics({"own/tokens": state.timestamp.token.value})
