"""A job from its command line to its last step: what it logs, validates, saves and resumes."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

import jobs
from mosaic_photon import train_spec


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """Forty steps, never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = jobs.write_job(folder, prepared_data)
    assert (
        jobs.run_here(
            arguments, "--training.steps=40", "--validation.enable=true", "--validation.steps=2", "--validation.freq=20"
        )
        == 0
    )
    return folder


def test_losses_fall_and_every_step_is_logged(whole_run: Path) -> None:
    losses = jobs.scalars(whole_run)
    assert list(losses) == list(range(1, 41))
    assert 7 < losses[1] < 9  # log(2048) = 7.6 and a random readout
    assert losses[40] < losses[1] - 0.5


def test_tokens_are_counted_over_the_global_batch(whole_run: Path) -> None:
    tokens = jobs.scalars(whole_run, "n_tokens_seen")
    assert tokens == {step: 4 * 64 * step for step in range(1, 41)}
    assert jobs.scalars(whole_run, "n_loss_tokens_seen") == tokens


def test_validation_runs_on_titan_s_schedule(whole_run: Path) -> None:
    losses = jobs.scalars(whole_run, "validation_metrics/loss")
    assert list(losses) == [1, 20, 40]
    assert losses[40] < losses[1]


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
    flags = ("--checkpoint.enable=true", "--validation.enable=true", "--validation.steps=2", "--validation.freq=20")
    process = jobs.start(arguments, *flags, "--training.steps=1000", "--checkpoint.interval=1000", ranks=0)
    jobs.read_until_step(process, 4)
    assert jobs.shared_memory(process) == []
    os.kill(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    stopped_at = int(re.search(r"Stopped at step (\d+); its checkpoint is complete", printed)[1])
    assert [path.name for path in (tmp_path / "out/checkpoint").iterdir()] == [f"step-{stopped_at}"]

    process = jobs.start(arguments, *flags, "--training.steps=1000", "--checkpoint.interval=1")
    jobs.read_until_step(process, stopped_at + 3)
    jobs.kill(process)
    last = stopped_at + 8
    printed = jobs.launch(arguments, *flags, f"--training.steps={last}", "--checkpoint.interval=1")
    assert f"step-{stopped_at + 2}" in printed or f"step-{stopped_at + 3}" in printed

    for tag in (jobs.LOSS, "grad_norm", "n_tokens_seen"):
        whole = jobs.scalars(whole_run, tag)
        assert jobs.scalars(tmp_path, tag) == {step: whole[step] for step in range(1, last + 1)}
    assert jobs.processes_mentioning(tmp_path) == []


def test_two_fsdp_ranks_give_the_losses_of_one(tmp_path: Path, prepared_data: Path, whole_run: Path) -> None:
    arguments = jobs.write_job(tmp_path, prepared_data)
    flags = ("--validation.enable=true", "--validation.steps=1", "--validation.freq=20", "--checkpoint.enable=true")
    process = jobs.start(arguments, "--training.steps=1000", *flags, ranks=2)
    jobs.read_until_step(process, 21)
    os.kill(process.pid, signal.SIGINT)  # as Ctrl-C: torchrun passes it on to both ranks
    printed, _ = process.communicate(timeout=60)
    stopped_at = int(re.search(r"Stopped at step (\d+); its checkpoint is complete", printed)[1])
    assert [path.name for path in (tmp_path / "out/checkpoint").iterdir()] == [f"step-{stopped_at}"]
    for tag, tolerance in ((jobs.LOSS, 1e-4), ("validation_metrics/loss", 1e-4), ("grad_norm", 1e-3)):
        two, one = jobs.scalars(tmp_path, tag), jobs.scalars(whole_run, tag)
        assert 20 in two
        assert {s: two[s] for s in two if s <= 20} == pytest.approx({s: one[s] for s in one if s <= 20}, rel=tolerance)
    assert jobs.scalars(tmp_path, "n_tokens_seen")[20] == jobs.scalars(whole_run, "n_tokens_seen")[20]


def test_seed_checkpoint_is_what_a_run_starts_from(tmp_path: Path, prepared_data: Path, whole_run: Path) -> None:
    arguments = jobs.write_job(tmp_path, prepared_data)
    assert jobs.run_here(arguments, "--checkpoint.enable=true", "--checkpoint.create_seed_checkpoint=true") == 0
    assert (tmp_path / "out/checkpoint/step-0/.metadata").exists()
    assert jobs.run_here(arguments, "--checkpoint.enable=true", "--debug.seed=99") == 0
    losses = jobs.scalars(tmp_path)
    whole = jobs.scalars(whole_run)
    assert losses[1] == whole[1]  # not the weights of seed 99


RECIPE = """
[mup]
enabled = true
base_width = 32
base_depth = 1
[callbacks.optimizer_monitor]
interval = "2ba"
only_global = true
[callbacks.quasi_hyperbolic_parameter_monitor]
"""


def test_the_whole_recipe_trains(tmp_path: Path, prepared_data: Path) -> None:
    """CompleteP on TorchTitan's Llama 3, QHADOPT, a warmup-stable-decay schedule and callbacks, resumed half-way."""
    job = jobs.JOB.replace('"AdamW"', '"QHADOPT"').replace(
        "warmup_steps = 2\ntotal_steps = 1000",
        'name = "constant_with_sqrt_cooldown_with_warmup"\nkwargs = {{t_warmup = "2ba", t_cooldown = "0.5dur"}}',
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ("--training.steps=8", "--checkpoint.enable=true", "--checkpoint.interval=4", "--validation.enable=true")
    assert jobs.run_here(jobs.write_job(whole, prepared_data, job + RECIPE), *flags) == 0
    shutil.copytree(whole / "out/checkpoint/step-4", parts / "out/checkpoint/step-4")
    assert jobs.run_here(jobs.write_job(parts, prepared_data, job + RECIPE), *flags) == 0

    losses = jobs.scalars(whole, "validation_metrics/loss")  # of the same samples each time
    assert losses[8] < losses[1]
    assert jobs.scalars(whole, "lr") == pytest.approx(
        {1: 0, 2: 1.5e-3, 3: 3e-3, 4: 3e-3, 5: 3e-3, 6: 1.5e-3, 7: 0.88e-3, 8: 0.40e-3}, rel=0.02
    )
    assert list(jobs.scalars(whole, "l2_norm/grad/global")) == [2, 4, 6, 8]
    for tag in (jobs.LOSS, "lr", "l2_norm/moment/global"):
        assert jobs.scalars(parts, tag) == {step: value for step, value in jobs.scalars(whole, tag).items() if step > 4}


SMALL = {
    "llama4": "",
    "qwen3": "",
    "deepseek_v3": "",
    "gpt_oss": "vocab_size = 2048\nmoe_inter_dim = 64\nn_layers = 2\nn_heads = 4\nn_kv_heads = 2\nhead_dim = 16",
}
"""The debug models of TorchTitan, and overrides where they are large."""


@pytest.mark.parametrize("model", [model for model in SMALL if f"{model}_mosaic" in train_spec.known_models()])
def test_other_models_train(model: str, tmp_path: Path, prepared_data: Path) -> None:
    precision = "bfloat16" if model == "gpt_oss" else "float32"  # TorchTitan's gpt_oss experts are bfloat16 only
    job = jobs.JOB.replace("llama3_mosaic", f"{model}_mosaic")
    before, after = job.index("[model.overrides]"), job.index("[optimizer]")
    arguments = jobs.write_job(
        tmp_path, prepared_data, f"{job[:before]}[model.overrides]\n{SMALL[model]}\n{job[after:]}"
    )
    assert jobs.run_here(arguments, "--training.steps=8", f"--training.mixed_precision_param={precision}") == 0
    losses = jobs.scalars(tmp_path)
    assert losses[7] + losses[8] < losses[1] + losses[2]
