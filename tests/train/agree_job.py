"""Ranks that see other things, forked from one process: what each of them decides, as a line of JSON each.

Usage: agree_job.py STORE, a file that is not there.
"""

from __future__ import annotations

import json
import math
import os
import sys

import torch
import torch.distributed as dist

from mosaic_photon.callbacks import SpikeGuard
from mosaic_photon.checkpoints.find import Start
from mosaic_photon.dataloader.order.skips import Skips
from mosaic_photon.errors import ConfigError, SpikesError
from mosaic_photon.train.finite import FiniteSteps, SkippedStepError
from mosaic_photon.train.loop import check_same_on_all_ranks

RANKS = 3


def decisions(rank: int) -> list[str]:
    """Of ten steps: the loss leaps on rank 1 alone in step 6, the norm is not finite on rank 2 alone in step 8."""
    guard = SpikeGuard(window=4, max_skips=1)
    watched, found = FiniteSteps("skip", 1, str, [guard]), []
    for step in range(1, 11):
        watched.begin()
        watched.add(torch.tensor((500.0 if (rank, step) == (1, 6) else 1 + step % 2) / RANKS))
        norm = torch.tensor(math.nan if (rank, step) == (2, 8) else 1.0)
        try:
            watched.look(step, step, lambda: "", norm)
            found.append("made")
        except SkippedStepError:
            found.append("held back")
        except SpikesError as error:
            return [*found, str(error)]
    return found


def refusal(rank: int) -> str:
    """Of a job whose file on one node passes over other batches."""
    skips = Skips.parse(["6-8"] if rank else ["6-9"])
    try:
        check_same_on_all_ranks({"mosaic.skip_batches": str(skips)}, Start())
    except ConfigError as error:
        return str(error)
    return "trained"


def main(store: str) -> None:
    children = []
    for rank in range(RANKS):
        if pid := os.fork():
            children.append(pid)
            continue
        dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
        found = [decisions(rank), refusal(rank)]
        dist.barrier()
        os.write(1, (json.dumps(found) + "\n").encode())
        os._exit(0)
    for pid in children:
        os.waitpid(pid, 0)
    os._exit(0)  # what was imported takes seconds to take down


if __name__ == "__main__":
    main(sys.argv[1])
