"""A plateau is trained once and cooled down from anywhere: a branch is the run that would have had this length."""

from __future__ import annotations

import pytest

import jobs

SCHEDULE = """[optimizer]
name = "QHADOPT"
lr = 3e-3
weight_decay = 1e-3
decouple = true
[lr_scheduler]
name = "constant_with_sqrt_cooldown_with_warmup"
[lr_scheduler.kwargs]
t_warmup = "2ba"
t_cooldown = "{cooldown}"
[checkpoint]
enable = true
interval = 6
last_save_model_only = false
{load}
[training]
steps = {steps}
"""


def run(folder, data, steps, cooldown, load=""):
    start, end = jobs.JOB.index("[optimizer]"), jobs.JOB.index("[training]")
    ours = SCHEDULE.format(steps=steps, cooldown=cooldown, load=load)
    rest = (
        jobs.JOB[end:]
        .replace("[training]\nsteps = 4\n", "")
        .replace("[checkpoint]\nlast_save_model_only = false\n", "")
    )
    assert jobs.run_here(jobs.write_job(folder, data, jobs.JOB[:start] + ours + rest)) == 0
    return jobs.scalars(folder), jobs.scalars(folder, "lr")


def test_a_cooldown_from_a_plateau_checkpoint_is_the_run_of_that_length(tmp_path, prepared_data):
    plateau_losses, plateau_lrs = run(tmp_path / "plateau", prepared_data, 8, "0ba")
    checkpoint = tmp_path / "plateau" / "out" / "checkpoint" / "step-6"
    load = f'initial_load_path = "{checkpoint}"\ninitial_load_model_only = false'
    branch_losses, branch_lrs = run(tmp_path / "branch", prepared_data, 10, "4ba", load)
    whole_losses, whole_lrs = run(tmp_path / "whole", prepared_data, 10, "4ba")

    assert list(plateau_lrs.values())[2:] == pytest.approx([3e-3] * 6)
    assert list(branch_losses) == [7, 8, 9, 10]
    expected = [3e-3 * (1 - (s / 4) ** 0.5) for s in range(4)]
    assert list(branch_lrs.values()) == pytest.approx(expected)
    assert branch_losses[7] == plateau_losses[7]  # the same weights and data, before the learning rates part
    joined = {step: loss for step, loss in plateau_losses.items() if step <= 6} | branch_losses
    assert joined == whole_losses
    assert branch_lrs == {step: whole_lrs[step] for step in branch_lrs}
