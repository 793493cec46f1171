"""A job from its command line to its last step: what it logs, validates, saves and resumes."""

import os
import signal
import time
from pathlib import Path

import pytest

import jobs


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """Twelve steps, never stopped, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = jobs.write_job(folder, prepared_data)
    assert jobs.run_here(arguments, "--training.steps=12", "--validation.enable=true", "--validation.steps=2") == 0
    return folder


def test_losses_fall_and_every_step_is_logged(whole_run: Path) -> None:
    losses = jobs.scalars(whole_run)
    assert list(losses) == list(range(1, 13))
    assert 7 < losses[1] < 9  # log(2048) = 7.6 and a random readout
    assert losses[12] < losses[1] - 0.15


def test_tokens_are_counted_over_the_global_batch(whole_run: Path) -> None:
    tokens = jobs.scalars(whole_run, "n_tokens_seen")
    assert tokens == {step: 4 * 64 * step for step in range(1, 13)}
    assert jobs.scalars(whole_run, "n_loss_tokens_seen") == tokens


def test_validation_runs_on_titan_s_schedule(whole_run: Path) -> None:
    losses = jobs.scalars(whole_run, "validation_metrics/loss")
    assert list(losses) == [1, 2, 4, 6, 8, 10, 12]
    assert losses[12] < losses[1]


def test_metrics_of_a_device_are_left_out_on_a_cpu(whole_run: Path) -> None:
    assert jobs.scalars(whole_run, "mfu(%)") == {}
    assert jobs.scalars(whole_run, "memory/max_active(GiB)")[12] > 0.1


def test_validation_sees_the_same_samples_each_time(tmp_path: Path, prepared_data: Path) -> None:
    """With a learning rate of zero every pass must give the same loss to the last bit."""
    arguments = jobs.write_job(tmp_path, prepared_data)
    flags = (
        "--optimizer.lr=0",
        "--optimizer.weight_decay=0",
        "--validation.enable",
        "--validation.freq=1",
        "--validation.steps=2",
    )
    assert jobs.run_here(arguments, *flags) == 0
    losses = jobs.scalars(tmp_path, "validation_metrics/loss")
    assert len(losses) == 4
    assert len(set(losses.values())) == 1


def test_stopped_by_sigterm_then_killed_then_resumed_gives_the_same_losses(
    tmp_path: Path, prepared_data: Path, whole_run: Path
) -> None:
    arguments = jobs.write_job(tmp_path, prepared_data)
    flags = ("--training.steps=12", "--checkpoint.enable=true", "--validation.enable=true", "--validation.steps=2")
    shared_memory = set(os.listdir("/dev/shm"))

    process = jobs.start(arguments, *flags, "--checkpoint.interval=1000", "--checkpoint.enable_first_step_checkpoint")
    jobs.wait_for_step(tmp_path, 1, process)
    os.killpg(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert "checkpoint written" in printed
    stopped_at = max(int(path.name.removeprefix("step-")) for path in (tmp_path / "out/checkpoint").iterdir())
    assert 1 < stopped_at < 12, printed

    process = jobs.start(arguments, *flags, "--checkpoint.interval=1")
    jobs.wait_for_step(tmp_path, stopped_at + 2, process)
    jobs.kill(process)
    time.sleep(0.5)
    printed = jobs.launch(arguments, *flags, "--checkpoint.interval=1")
    assert "Training completed" in printed

    assert jobs.scalars(tmp_path) == jobs.scalars(whole_run)
    assert jobs.scalars(tmp_path, "n_tokens_seen") == jobs.scalars(whole_run, "n_tokens_seen")
    assert jobs.processes_mentioning(tmp_path) == []
    assert set(os.listdir("/dev/shm")) <= shared_memory


def test_two_fsdp_ranks_give_the_losses_of_one(tmp_path: Path, prepared_data: Path, whole_run: Path) -> None:
    arguments = jobs.write_job(tmp_path, prepared_data)
    flags = ("--training.steps=12", "--validation.enable=true", "--validation.steps=2")
    printed = jobs.launch(arguments, *flags, ranks=2)
    assert "2 processes (shard 2)" in printed
    for tag in (jobs.LOSS, "validation_metrics/loss"):
        two, one = jobs.scalars(tmp_path, tag), jobs.scalars(whole_run, tag)
        assert two == pytest.approx(one, rel=1e-4)
    assert jobs.scalars(tmp_path, "grad_norm") == pytest.approx(jobs.scalars(whole_run, "grad_norm"), rel=1e-3)
    assert jobs.scalars(tmp_path, "n_tokens_seen") == jobs.scalars(whole_run, "n_tokens_seen")


def test_seed_checkpoint_is_what_a_run_starts_from(tmp_path: Path, prepared_data: Path, whole_run: Path) -> None:
    arguments = jobs.write_job(tmp_path, prepared_data)
    assert jobs.run_here(arguments, "--checkpoint.enable=true", "--checkpoint.create_seed_checkpoint=true") == 0
    assert (tmp_path / "out/checkpoint/step-0/.metadata").exists()
    assert jobs.run_here(arguments, "--checkpoint.enable=true", "--debug.seed=99") == 0
    losses = jobs.scalars(tmp_path)
    whole = jobs.scalars(whole_run)
    assert losses[1] == whole[1]  # not the weights of seed 99


@pytest.mark.parametrize("model", ["llama4", "qwen3", "deepseek_v3", "gpt_oss"])
def test_other_models_train(model: str, tmp_path: Path, prepared_data: Path) -> None:
    job = jobs.JOB.replace("llama3_mosaic", f"{model}_mosaic")
    job = job[: job.index("[model.overrides]")] + job[job.index("[optimizer]") :]
    arguments = jobs.write_job(tmp_path, prepared_data, job)
    assert jobs.run_here(arguments, "--training.steps=3") == 0
    losses = jobs.scalars(tmp_path)
    assert losses[3] < losses[1]
