"""Shared fixtures: small real data, and real jobs launched as a user launches them."""

import os
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # here and in what tests start: another number of threads adds up in another order

import pytest

import mosaic_photon.titan  # noqa: F401  (before any test imports TorchTitan)

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "tests" / "assets" / "tokenizer"


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MDS shards of a little of the standard library, 65 tokens a sample: train/ and val/."""
    out = tmp_path_factory.mktemp("data") / "shards"
    sources = [str(Path(module.__file__ or "").parent) for module in (__import__("json"), __import__("email"))]
    command = [sys.executable, "-m", "mosaic_photon.cli", "prepare", *sources, "--out", str(out), "--val=0.2"]
    command += ["--tokenizer", str(TOKENIZER), "--seq-len=64", "--workers=1"]
    subprocess.run(command, check=True, capture_output=True)
    return out
