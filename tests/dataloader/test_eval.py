"""Validation reads each sample once per pass, alike every time, and its mean is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mds_data import flat, job, numbers, text_loader, write_mds
from mosaic_photon.dataloader import build_mosaic_eval_dataloader
from mosaic_photon.errors import ConfigError


def rank_numbers(loader: Any) -> list[list[int]]:
    """The samples of each micro-batch; rows that only fill it up are left out."""
    seen = []
    for batch in loader:
        valid = (batch[1] != -100).any(1)
        seen.append([number for number, is_valid in zip(numbers(batch), valid.tolist(), strict=True) if is_valid])
    return seen


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "num_canonical_nodes": 7, "shuffle_algo": "py1s"}])
@pytest.mark.parametrize("dp", [1, 2, 3])
def test_every_sample_once_in_the_same_order_on_every_pass(
    mds: Path, tokenizer: Any, dp: int, options: dict[str, Any]
) -> None:
    config = job(eval_loader=text_loader({"local": str(mds), **options}), local=4)
    loaders = [build_mosaic_eval_dataloader(dp, rank, tokenizer, config) for rank in range(dp)]
    passes = [[rank_numbers(loader) for loader in loaders] for _ in range(2)]
    assert passes[0] == passes[1]
    assert {len(batches) for batches in passes[0]} == {len(loaders[0])} == {-(-203 // (4 * dp))}
    assert sorted(flat(flat(passes[0]))) == list(range(203))
    assert loaders[0].state_dict() == {}
    if not options:
        assert [number for batches in zip(*passes[0], strict=True) for b in batches for number in b][: 4 * dp] == [
            row * dp + rank for rank in range(dp) for row in range(4)
        ]


@pytest.mark.parametrize("method", ["stratified", "per_stream", "device_per_stream"])
def test_every_sample_once_whatever_the_batching_method(mds: Path, tmp_path: Path, tokenizer: Any, method: str) -> None:
    streams = {"a": {"local": str(mds)}, "b": {"local": str(write_mds(tmp_path, 3, start=203))}}
    config = job(eval_loader=text_loader({"streams": streams, "batching_method": method}), local=4)
    loader = build_mosaic_eval_dataloader(1, 0, tokenizer, config)
    assert sorted(flat(rank_numbers(loader))) == list(range(206))


def test_a_pass_that_is_broken_off_does_not_move_the_next(mds: Path, tokenizer: Any) -> None:
    loader = build_mosaic_eval_dataloader(1, 0, tokenizer, job(eval_loader=text_loader({"local": str(mds)}), local=4))
    assert numbers(next(iter(loader))) == numbers(next(iter(loader))) == [0, 1, 2, 3]


def test_validation_without_an_eval_loader_says_so(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"has no eval loader; add a \[mosaic_eval_dataloader\]"):
        build_mosaic_eval_dataloader(1, 0, tokenizer, job())


def test_validation_reads_from_a_remote(mds: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = job(eval_loader=text_loader({"remote": str(mds), "local": str(tmp_path)}), local=4)
    loader = build_mosaic_eval_dataloader(1, 0, tokenizer, config)
    assert sorted(flat(rank_numbers(loader))) == list(range(203))
    loader.close()
