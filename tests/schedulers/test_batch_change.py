"""A schedule in tokens or samples goes by what was consumed, after a change of batch too."""

from pathlib import Path

import pytest
from streaming import MDSWriter

import jobs
from mds_data import sample_tokens
from mosaic_photon.job.run_length import Position, RunLength, parse
from mosaic_photon.schedulers.catalog import build_multiplier

RESUMED = RunLength(14, batch_samples=8, batch_tokens=512, begin=Position(steps=8, samples=32, tokens=2048))
"""8 steps of 256 tokens, then 6 of 512."""


@pytest.mark.parametrize("milestone", ["3584tok", "56sp", "11ba"])
def test_a_milestone_comes_when_it_has_been_consumed(milestone: str) -> None:
    multiplier = build_multiplier("MultiStepScheduler", {"milestones": [milestone], "gamma": 0.1}, RESUMED)
    assert [multiplier(step) for step in range(15)] == pytest.approx([1.0] * 11 + [0.1] * 4)


def test_a_cooldown_in_tokens_ends_with_the_run() -> None:
    kwargs = {"t_warmup": "512tok", "t_cooldown": "1024tok"}
    multiplier = build_multiplier("constant_with_linear_cooldown_with_warmup", kwargs, RESUMED)
    values = [multiplier(step) for step in range(15)]
    assert values == pytest.approx([0, 0.5, *[1] * 11, 0.5, 0])
    assert parse("1dur").to("tok", RESUMED) == 2048 + 6 * 512


def test_a_job_resumed_with_twice_the_batch_drops_at_its_milestone(tmp_path: Path) -> None:
    """8 steps of 256 tokens, then of 512: 3,584 are seen after step 11, so step 12 is the first with the lower rate."""
    with MDSWriter(out=str(tmp_path / "data/train"), columns={"tokens": "ndarray:int32:65"}) as writer:
        for number in range(256):
            writer.write({"tokens": sample_tokens(number, 65).astype("int32")})
    schedule = 'name = "MultiStepScheduler"\n[lr_scheduler.kwargs]\nmilestones = ["3584tok"]\ngamma = 0.1'
    job = jobs.JOB.replace("warmup_steps = 2\ntotal_steps = 1000", schedule)
    data = jobs.DATA.partition("[mosaic_eval_dataloader]")[0]
    arguments = jobs.write_job(tmp_path, tmp_path / "data", job, data)
    saves = ("--checkpoint.enable=true", "--checkpoint.interval=8", "--mosaic.allow_data_change=true")
    for steps, batch in ((8, 4), (13, 8)):
        assert (
            jobs.run_here(arguments, *saves, f"--training.steps={steps}", f"--training.global_batch_size={batch}") == 0
        )
    rates = jobs.scalars(tmp_path, "lr")
    assert jobs.scalars(tmp_path, "n_tokens_seen")[11] == 3584
    assert [rates[step] for step in (8, 9, 11, 12, 13)] == pytest.approx([3e-3] * 3 + [3e-4] * 2)
