"""A small job that was trained, with its validation and two checkpoints."""

from pathlib import Path

import pytest

import jobs


@pytest.fixture(scope="session")
def trained_job(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """The folder of job.toml, data.toml and out/: Llama 3, checkpoints and validation at steps 2 and 4."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = jobs.write_job(folder, prepared_data)
    flags = ["--checkpoint.enable=true", "--checkpoint.interval=2", "--validation.enable=true"]
    assert jobs.run_here(arguments, *flags) == 0
    return folder
