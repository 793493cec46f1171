"""Sizes that a sampler can't serve: what is proposed in their place is not refused for the same."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest

from mosaic_photon.dataloader.order.epoch import EpochOrder, StreamPart
from mosaic_photon.errors import ConfigError

METHODS = ("random", "stratified", "per_stream", "device_per_stream")
KEYS = {"shuffle_block_size": "block", "num_canonical_nodes": "canonical_nodes", "training.global_batch_size": "batch"}


def epoch(method: str, shuffle: str | None, block: int, nodes: int, batch: int, sizes: tuple[int, ...]) -> EpochOrder:
    begins = np.cumsum(sizes) - sizes
    parts = [
        StreamPart(str(size), np.array([size]), int(begin), size, size / sum(sizes))
        for size, begin in zip(sizes, begins, strict=True)
    ]
    return EpochOrder(tuple(parts), method, batch, nodes, True, 1, shuffle, 5, block)


def refusal(order: EpochOrder) -> str:
    try:
        order.length()
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("method", METHODS)
def test_what_is_proposed_will_do(method: str) -> None:
    seen = set()
    grid = itertools.product((None, "py1br", "py1e", "py2s"), (1, 2, 4, 64), (1, 2, 8), (1, 2, 8, 64))
    for (shuffle, block, nodes, batch), sizes in itertools.product(grid, ((40,), (1,), (40, 3), (40, 1, 3), (700, 11))):
        order = epoch(method, shuffle, block, nodes, batch, sizes)
        said = refusal(order)
        if not said:
            order.make(0)
            continue
        key = said.split(":")[0]
        seen.add(key)
        if proposed := re.search(r"at (?:least|most) (\d+)", said):
            mended = dataclasses.replace(order, **{KEYS[key]: int(proposed[1])})
            assert refusal(mended) == "" or not refusal(mended).startswith(key) or "takes" in refusal(mended)
            if "at most" in said:
                continue
            worse = dataclasses.replace(order, **{KEYS[key]: int(proposed[1]) - (batch if KEYS[key] == "batch" else 1)})
            assert refusal(worse).startswith(key)
        else:
            assert re.search(r"takes \d+ samples of stream '\d+', which has \d+ an epoch", said)
    assert {"shuffle_block_size", "num_canonical_nodes"} <= seen
    assert method == "random" or any(key.startswith("training.") for key in seen)
