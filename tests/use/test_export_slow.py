"""Export from real runs in each layout, the way back into a run, and how much memory it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import jobs
from mosaic_photon.cli import main
from mosaic_photon.use.checkpoint import job_model
from use import trained

pytestmark = pytest.mark.slow

SAVED = ("--training.steps=2", "--checkpoint.enable", "--checkpoint.interval=2")
LAYOUTS = {
    "FSDP2 ×2": ["--parallelism.data_parallel_shard_degree=2"],
    "TP ×2": ["--parallelism.tensor_parallel_degree=2"],
    "PP ×2": ["--parallelism.pipeline_parallel_degree=2", "--training.local_batch_size=4"],
}


def exported(folder: Path) -> torch.Tensor:
    """Logits of what is exported of the run's checkpoint, which are those of the checkpoint."""
    job = str(folder / "job.toml")
    assert main(["export", str(folder / "out/checkpoint"), str(folder / "hf"), "--job", job]) == 0
    given = trained.logits(AutoModelForCausalLM.from_pretrained(folder / "hf").eval(), trained.TOKENS).logits
    opened = trained.opened(job_model(job), str(folder / "out/checkpoint/step-2"))
    torch.testing.assert_close(given, trained.logits(opened), rtol=1e-5, atol=1e-5)
    return given


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> tuple[Path, torch.Tensor]:
    """A run of one process, and the logits of what is exported of it."""
    folder = tmp_path_factory.mktemp("one")
    assert jobs.run_here(jobs.write_job(folder, prepared_data), *SAVED) == 0
    return folder, exported(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_each_layout(layout: str, one: tuple[Path, torch.Tensor], prepared_data: Path, tmp_path: Path) -> None:
    jobs.launch(jobs.write_job(tmp_path, prepared_data), *SAVED, *LAYOUTS[layout], ranks=2)
    torch.testing.assert_close(exported(tmp_path), one[1], rtol=1e-3, atol=1e-3)


def test_a_run_begins_from_what_is_imported(
    one: tuple[Path, torch.Tensor], prepared_data: Path, tmp_path: Path
) -> None:
    folder, _ = one
    assert main(["import", str(folder / "hf"), str(tmp_path / "start"), "--job", str(folder / "job.toml")]) == 0
    losses = []
    for start in (tmp_path / "start", folder / "out/checkpoint/step-2"):
        run = tmp_path / f"from {start.name}"
        begin = [f"--checkpoint.initial_load_path={start}", "--checkpoint.enable", "--training.steps=2"]
        assert jobs.run_here(jobs.write_job(run, prepared_data), *begin) == 0
        losses.append(jobs.scalars(run))
    assert losses[0] == losses[1]


BIG = "dim = 1024\nn_layers = 24\nn_heads = 8\n"
MEASURED = """
import resource, sys, psutil, torch
from mosaic_photon.use import export
from mosaic_photon.use.checkpoint import job_model
model = job_model(sys.argv[1])
before = psutil.Process().memory_info().rss
export.export(model, sys.argv[2], sys.argv[3])
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory(tmp_path: Path) -> None:
    """A file holds the whole of this model, so that it is what there is most of."""
    model, _, checkpoint = trained.saved(tmp_path, "llama3", BIG)
    command = [sys.executable, "-c", MEASURED, model.path, str(checkpoint), str(tmp_path / "hf")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, peak = map(int, printed.split()[-2:])
    size = sum(file.stat().st_size for file in (tmp_path / "hf").glob("*.safetensors"))
    print(f"model {size / 2**30:.2f} GiB, above imports {(peak - before) / size:.3f} times as much")
    assert size > 10**9
    assert peak - before < 1.2 * size
