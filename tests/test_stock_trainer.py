"""The public names under TorchTitan's own Trainer: right gradients, or a sentence in place of wrong ones."""

from pathlib import Path

import pytest

import jobs
from layouts_jobs import run_plan

LLAMA = ("llama3_mosaic", "dim = 64\nn_layers = 2\nn_heads = 4")
MODELS = {
    "register_llama3_mosaic": LLAMA,
    "register_mpt_mup_mosaic": (
        "mpt_mup_mosaic",
        "d_model = 64\nn_layers = 2\nn_heads = 4\ntie_word_embeddings = false",
    ),
    "register": ("qwen3_mosaic", "n_layers = 2"),
    "data_of_job": LLAMA,
}
DDP = ["--parallelism.data_parallel_replicate_degree=2", "--parallelism.data_parallel_shard_degree=1"]
ACCUMULATED = [*DDP, "--training.local_batch_size=1"]  # two micro-batches a step
PP = ["--parallelism.pipeline_parallel_degree=2", "--training.local_batch_size=4"]


def job_of(name: str) -> str:
    model, overrides = MODELS[name]
    small = jobs.JOB[jobs.JOB.index("[model.overrides]") : jobs.JOB.index("[optimizer]")]
    job = jobs.JOB.replace(small, f"[model.overrides]\n{overrides}\n")
    return job.replace("llama3_mosaic", model).replace("steps = 4", "steps = 3")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """Each name in one process by MosaicTrainer, and in two ranks by TorchTitan's, under DDP and with a pipeline."""
    root, plan = tmp_path_factory.mktemp("stock"), []
    for name in MODELS:
        for kind, flags, ranks in (("whole", [], 1), ("ddp", ACCUMULATED, 2), ("pp", PP, 2)):
            if (name, kind) in (("data_of_job", "pp"), ("register", "pp")):
                continue  # the same loss
            folder = root / f"{name} {kind}"
            arguments = jobs.write_job(folder, prepared_data, job_of(name))
            plan.append({"name": folder.name, "ranks": ranks, "arguments": [*arguments, "--", *flags]})
            plan[-1] |= {"log": str(folder / "log"), "public_name": "" if kind == "whole" else name}
    run_plan(plan, root)
    return root


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_accumulated_micro_batches_under_ddp(ran: Path, name: str) -> None:
    expected, found = (jobs.scalars(ran / f"{name} {kind}", "grad_norm") for kind in ("whole", "ddp"))
    assert len(expected) == 3, (ran / f"{name} whole" / "log").read_text()
    assert found == pytest.approx(expected, rel=1e-3), (ran / f"{name} ddp" / "log").read_text()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["register_llama3_mosaic", "register_mpt_mup_mosaic"])
def test_a_pipeline_is_refused_before_its_first_backward(ran: Path, name: str) -> None:
    log = (ran / f"{name} pp" / "log").read_text()
    assert "train with mosaic_photon.train_with_mosaic" in log and "step:  1" not in log, log
