"""The schedules inside Composer, and Composer's and llm-foundry's schedules inside TorchTitan."""

from __future__ import annotations

import composer.optim
import pytest
import torch
from composer import Callback, ComposerModel, Trainer
from composer.callbacks import OptimizerMonitor as ComposersMonitor
from composer.core import State
from composer.devices import DeviceCPU
from composer.loggers import InMemoryLogger
from llmfoundry.utils.builders import build_optimizer, build_scheduler

from mosaic_photon import schedulers
from mosaic_photon.callbacks import OptimizerMonitor
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.run_length import RunLength
from mosaic_photon.schedulers.catalog import build_multiplier
from mosaic_photon.schedulers.wsd import WarmupStableDecay

CLASSES = {
    "constant_with_linear_cooldown_with_warmup": schedulers.ConstantWithLinearCooldownWithWarmupScheduler,
    "constant_with_sqrt_cooldown_with_warmup": schedulers.ConstantWithSqrtCooldownWithWarmupScheduler,
    "constant_with_sqrt_cooldown_with_warmup_and_switch": (
        schedulers.ConstantWithSqrtCooldownWithWarmupAndSwitchScheduler
    ),
}
STEPS, SAMPLES, TOKENS, EPOCH = 40, 8, 512, 10


class Tiny(ComposerModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, batch):
        return self.linear(batch)

    def loss(self, outputs, batch):
        return (outputs - batch).square().mean()


def values(scheduler, max_duration, steps=STEPS, ssr=1.0):
    """The multiplier at each step, from a real composer.State."""
    state = State(model=Tiny(), rank_zero_seed=0, run_name="test", device=DeviceCPU(), max_duration=max_duration)
    state.set_dataloader([0] * EPOCH, "train", dataloader_len=EPOCH)
    found = []
    for step in range(steps + 1):
        found.append(scheduler(state, ssr))
        state.timestamp = state.timestamp.to_next_batch(SAMPLES, TOKENS)
        if (step + 1) % EPOCH == 0:
            state.timestamp = state.timestamp.to_next_epoch()
    return found


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("times", "max_duration"),
    [
        ({"t_warmup": "5ba", "t_cooldown": "10ba"}, "40ba"),
        ({"t_warmup": "0.13dur", "t_cooldown": "0.29dur"}, "40ba"),
        ({"t_warmup": "1ep", "t_cooldown": "1ep"}, "4ep"),
        ({"t_warmup": "2560tok", "t_cooldown": "5120tok"}, "20480tok"),
        ({"t_warmup": "40sp", "t_cooldown": "80sp", "t_max": "400sp"}, "320sp"),
    ],
    ids=str,
)
def test_our_classes_have_the_values_that_a_torchtitan_job_has(name, times, max_duration):
    kwargs = {**times, "switch_scale": 0.5} if name.endswith("switch") else times
    multiplier = build_multiplier(name, kwargs, RunLength(STEPS, SAMPLES, TOKENS, EPOCH))
    expected = [multiplier(step) for step in range(STEPS + 1)]
    assert values(build_scheduler(name, kwargs), max_duration) == pytest.approx(expected, abs=1e-12)
    assert type(build_scheduler(name, kwargs)) is CLASSES[name]
    assert 0 < max(expected) <= 1 and expected[0] == 0


def test_the_scale_schedule_ratio_stretches_what_it_is_asked_to():
    def stretched(**scales):
        scheduler = CLASSES["constant_with_linear_cooldown_with_warmup"]("10ba", "10ba", "40ba", **scales)
        return values(scheduler, "20ba", 20, ssr=0.5)  # Composer's Trainer scales max_duration itself

    for scales, warmup, cooldown in [
        ({}, 10, 10),
        ({"scale_warmup": True}, 5, 10),
        ({"scale_cooldown": True}, 10, 5),
        ({"scale_warmup": True, "scale_cooldown": True}, 5, 5),
    ]:
        expected = WarmupStableDecay(warmup, cooldown, 20)
        assert stretched(**scales) == pytest.approx([expected(t) for t in range(21)])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"t_warmup": "30ba", "t_cooldown": "20ba"}, "longer than the schedule"),
        ({"t_warmup": "5ba", "t_cooldown": "100tok"}, "must have one unit"),
        ({"t_warmup": "5ba", "t_cooldown": "5ba", "t_max": "30ba"}, "must be greater than or equal to max_duration"),
        ({"t_warmup": "5sec", "t_cooldown": "5ba"}, "Wall clock"),
    ],
)
def test_composer_gets_an_error_at_its_first_call(kwargs, message):
    scheduler = CLASSES["constant_with_sqrt_cooldown_with_warmup"](**kwargs)
    with pytest.raises(ValueError, match=message):
        values(scheduler, "40ba", 0)


KWARGS = {
    "StepScheduler": {"step_size": "7ba"},
    "MultiStepScheduler": {"milestones": ["10ba", "0.5dur"]},
    "ConstantScheduler": {"alpha": 0.5, "t_max": "20ba"},
    "LinearScheduler": {"alpha_f": 0.1},
    "ExponentialScheduler": {"gamma": 0.9, "decay_period": "3ba"},
    "CosineAnnealingScheduler": {"alpha_f": 0.1},
    "CosineAnnealingWarmRestartsScheduler": {"t_0": "10ba"},
    "PolynomialScheduler": {"power": 2.0},
    "MultiStepWithWarmupScheduler": {"t_warmup": "5ba", "milestones": ["10ba", "20ba"]},
    "ConstantWithWarmupScheduler": {"t_warmup": "5ba"},
    "LinearWithWarmupScheduler": {"t_warmup": "5ba"},
    "CosineAnnealingWithWarmupScheduler": {"t_warmup": "5ba"},
    "PolynomialWithWarmupScheduler": {"t_warmup": "5ba"},
    "constant_with_warmup": {"t_warmup": "5ba"},
    "cosine_with_warmup": {"t_warmup": "5ba"},
    "linear_decay_with_warmup": {"t_warmup": "5ba"},
    "inv_sqrt_with_warmup": {"t_warmup": "5ba", "t_scale": "5ba", "t_cooldown": "5ba"},
}


def upstream(name, kwargs):
    return build_scheduler(name, kwargs) if name[0].islower() else getattr(composer.optim, name)(**kwargs)


@pytest.mark.parametrize("name", KWARGS)
def test_any_scheduler_of_composer_or_llm_foundry_has_its_own_values_in_a_job(name):
    multiplier = build_multiplier(name, KWARGS[name], RunLength(STEPS, SAMPLES, TOKENS, EPOCH))
    expected = values(upstream(name, KWARGS[name]), f"{STEPS}ba")
    assert [multiplier(step) for step in range(STEPS + 1)] == pytest.approx(expected)


def test_every_scheduler_there_is_has_been_tried():
    from llmfoundry import registry

    classes = {n for n in composer.optim.__all__ if n.endswith("Scheduler")} - {"ComposerScheduler"}
    assert set(KWARGS) | set(CLASSES) == classes | set(registry.schedulers.get_all())


def test_tokens_and_batches_may_be_mixed_where_composer_alone_refuses():
    kwargs = {"t_warmup": "2560tok", "t_max": "40ba"}
    with pytest.raises(ValueError, match="must use the same units"):
        values(build_scheduler("cosine_with_warmup", kwargs), "40ba", 0)
    multiplier = build_multiplier("cosine_with_warmup", kwargs, RunLength(STEPS, SAMPLES, TOKENS))
    same = build_multiplier("cosine_with_warmup", {"t_warmup": "5ba"}, RunLength(STEPS))
    assert [multiplier(t) for t in range(STEPS)] == pytest.approx([same(t) for t in range(STEPS)])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("cosine_with_warmp", {}, "no such schedule. Did you mean 'cosine_with_warmup'"),
        ("cosine_with_warmup", {"t_warmup": "5ba", "alpha": 1}, "does not take 'alpha'. Did you mean 'alpha_f'"),
        ("cosine_with_warmup", {}, "must give t_warmup"),
        ("cosine_with_warmup", {"t_warmup": "5ba", "t_max": "20ba"}, "must be greater than or equal to max_duration"),
        ("inv_sqrt_with_warmup", {"t_warmup": "0.1dur", "t_scale": "5ba", "t_cooldown": "5ba"}, "cannot be in units"),
        ("LinearScheduler", {"alpha_f": -1.0}, "its value at step .* is -"),
        ("StepScheduler", {"step_size": "5sec"}, "cannot run on the clock"),
    ],
)
def test_a_mistake_in_an_upstream_schedule_is_found_before_the_first_step(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build_multiplier(name, kwargs, RunLength(STEPS, SAMPLES, TOKENS, EPOCH))


class Recorder(Callback):
    """Learning rate and the parameters' change of every batch."""

    def __init__(self):
        self.lrs, self.changes = [], []

    def batch_start(self, state, logger):
        self.lrs.append(state.optimizers[0].param_groups[0]["lr"])
        self.before = [p.detach().clone() for p in state.model.parameters()]

    def batch_end(self, state, logger):
        change = [(p.detach() - b).norm().item() for p, b in zip(state.model.parameters(), self.before, strict=True)]
        self.changes.append(change)


@pytest.mark.parametrize("decouple", [False, True])
@pytest.mark.filterwarnings("ignore:optimizer_monitor reports")
@pytest.mark.parametrize("monitor", [OptimizerMonitor, ComposersMonitor])
def test_composers_trainer_runs_both_by_name_and_monitors_read_the_optimizer(monitor, decouple):
    model = Tiny()
    config = {"lr": 0.01, "betas": [0.9, 0.99], "v1": 0.8, "weight_decay": 0.02, "decouple": decouple}
    optimizer = build_optimizer(model, "qhadopt", config)
    schedule = build_scheduler("constant_with_sqrt_cooldown_with_warmup", {"t_warmup": "2ba", "t_cooldown": "0.5dur"})
    record, memory = Recorder(), InMemoryLogger()
    data = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(
        model=model,
        train_dataloader=torch.utils.data.DataLoader(data, batch_size=4),
        optimizers=optimizer,
        schedulers=schedule,
        max_duration="10ba",
        callbacks=[record, monitor(batch_log_interval=1)],
        loggers=[memory],
        device="cpu",
        progress_bar=False,
        log_to_console=False,
    )
    trainer.fit()
    trainer.close()
    expected = WarmupStableDecay(2, 5, 10, "sqrt")
    # Composer's Trainer steps its schedulers before it counts the batch: one batch behind a TorchTitan job.
    assert record.lrs == pytest.approx([0.01 * expected(max(t - 1, 0)) for t in range(10)])
    for index, (name, _) in enumerate(model.named_parameters()):
        assert len(memory.data[f"l2_norm/grad/{name}"]) == 10
        if monitor is OptimizerMonitor:  # Composer's own logs gradients alone
            updates = [value for _, value in memory.data[f"l2_norm/update/{name}"]]
            assert updates == pytest.approx([c[index] for c in record.changes], rel=1e-5, abs=1e-7)
            assert {f"l2_norm/{kind}/{name}" for kind in ("param", "moment", "moment2")} <= set(memory.data)
            assert f"min/moment2/{name}" in memory.data
