"""Shared fixtures: loaders, MDS data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from mds_data import ASSETS, write_mds
from mosaic_photon.dataloader import DataSpecDataLoader
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.train.data import build_dataloader
from s3_server import S3Server


@pytest.fixture(scope="session")
def tokenizer() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(str(ASSETS))


@pytest.fixture
def build(tokenizer: HuggingFaceTokenizer) -> Iterator[Any]:
    """Builds a rank's loader as a job does; all are closed at the end of the test."""
    built: list[DataSpecDataLoader] = []

    def build_one(config: MosaicJobConfig, dp: int = 1, rank: int = 0) -> DataSpecDataLoader:
        loader = build_dataloader(dp_world_size=dp, dp_rank=rank, tokenizer=tokenizer, job_config=config)
        built.append(loader)
        return loader

    yield build_one
    for loader in built:
        loader.close()


@pytest.fixture(scope="session")
def mds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """203 samples in shards of 16."""
    return write_mds(tmp_path_factory.mktemp("mds"), 203)


@pytest.fixture(scope="session")
def bucket(s3: S3Server, mds: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The 203 samples, and the same compressed under packed/."""
    packed = write_mds(tmp_path_factory.mktemp("packed") / "packed", 203, compression="zstd")
    s3.upload(packed.parent, "packed")
    return s3.upload(mds, "data")
