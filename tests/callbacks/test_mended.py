"""What upstream's callbacks do oddly and ours do not; numbers that are right in upstream's are the same in ours."""

import pytest
import torch
from composer.callbacks import ActivationMonitor as ComposersActivationMonitor
from composer.core import Event, State, Timestamp
from composer.devices import DeviceCPU
from composer.loggers import InMemoryLogger, Logger
from composer.models import ComposerModel

from mosaic_photon.callbacks.registry import build_callbacks


class Model(ComposerModel):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

    def forward(self, batch):
        return self.second(torch.relu(self.first(batch)))

    def loss(self, outputs, batch):
        return outputs.square().mean()


def made(name, state=None, **arguments):
    callback = build_callbacks({name: arguments})[name]
    if state is not None:
        callback.load_state_dict(state)
    return callback


def job(**group):
    model = Model()
    first, second = list(model.first.parameters()), list(model.second.parameters())
    optimizer = torch.optim.AdamW([{"params": first}, {"params": second, **group}], lr=0.1, weight_decay=0.01)
    state = State(model, 0, "run", DeviceCPU(), max_duration="100ba", optimizers=optimizer)
    memory = InMemoryLogger()
    memory.init(state, logger := Logger(state, memory))
    return state, logger, memory


def step(callback, state, logger, batches):
    callback.run_event(Event.BATCH_START, state, logger)
    for batch in batches:
        callback.run_event(Event.BEFORE_FORWARD, state, logger)
        state.model(batch)
        callback.run_event(Event.AFTER_FORWARD, state, logger)
    state.timestamp = state.timestamp.to_next_batch()
    callback.run_event(Event.BATCH_END, state, logger)


def logged(memory):
    return {name: [(stamp.batch.value, value) for stamp, value in data] for name, data in memory.data.items()}


@pytest.mark.filterwarnings("ignore:Currently the ActivationMonitor")
def test_activations_are_composers_and_those_of_the_whole_batch():
    batch = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for callback, parts in (
        (ComposersActivationMonitor(interval=1), [batch]),
        (made("activation_monitor", interval=1), [batch]),
        (made("composer.callbacks:ActivationMonitor", interval=1), [batch[:2], batch[2:]]),
    ):
        state, logger, memory = job()
        step(callback, state, logger, parts)
        found.append({name: values[0][1] for name, values in logged(memory).items()})
    composers, whole, parts = found
    inputs = [name for name in composers if "_input." in name and "/_" not in name]
    assert len(inputs) == 8
    assert {name: whole[name] for name in inputs} == pytest.approx({name: composers[name] for name in inputs}, rel=1e-5)
    samples = [composers[f"activations/max/second_output.{index}"] for index in range(len(batch))]
    assert whole["activations/max/second_output.0"] == pytest.approx(sum(samples) / len(samples), rel=1e-5)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_decay_is_a_share_of_the_peak_and_exempt_groups_stay_exempt():
    state, logger, _ = job(weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        state.optimizers[0], lambda step: (step + 1) / 10
    )  # not at its peak yet
    state.schedulers = [schedule]
    made("global_lr_scaling", lr_scale=0.5, wd_pct=0.2).run_event(Event.FIT_START, state, logger)
    groups = state.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [pytest.approx(0.2 * 0.05), 0.0]
    assert [group["lr"] for group in groups] == schedule.get_last_lr() == pytest.approx([0.005, 0.005])
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.01, 0.01])


def test_a_loss_spike_is_found_whenever_it_comes_and_after_a_resume():
    settings = {"window_size": 3, "patience": 1, "log_only": False}
    for stop in (None, 6, 9):  # resumed before the spike, or within its patience
        state, logger, _ = job()
        callback = made("kill_loss_spike", **settings)
        with pytest.raises(Exception, match="due to a loss spike"):
            for batch in range(1, 12):
                state.loss = torch.tensor(9.0 if batch >= 9 else 2.0)
                state.timestamp = state.timestamp.to_next_batch()
                callback.run_event(Event.BATCH_END, state, logger)
                assert batch < 10
                if batch == stop:
                    callback = made("kill_loss_spike", callback.state_dict(), **settings)
        assert state.timestamp.batch == 10


def test_arguments_of_a_resumed_job_hold_over_those_of_its_checkpoint():
    saved = made("kill_loss_spike", window_size=5, loss_cap=10.5)
    saved.loss_window.extend([1.0, 2.0, 3.0, 4.0, 5.0])
    saved.outlier_counter = 2
    for given, window, cap in (
        ({"window_size": 50, "loss_cap": 20}, 50, 20),
        ({"window_size": 3}, 3, 10.5),
        ({}, 5, 10.5),
    ):
        again = made("kill_loss_spike", saved.state_dict(), **given)
        assert (again.window_size, again.loss_window.maxlen, again.loss_cap) == (window, window, cap)
        assert list(again.loss_window) == [1.0, 2.0, 3.0, 4.0, 5.0][-window:]
        assert again.outlier_counter == 2


def test_patience_in_epochs_goes_on_after_a_resume():
    settings = {"monitor": "LanguageCrossEntropy", "dataloader_label": "eval", "patience": 3}
    callback = made("early_stopper", **settings)
    callback.best, callback.best_occurred = torch.tensor(2.0), Timestamp(epoch=4, batch=9)
    again = made("early_stopper", callback.state_dict(), **settings)
    assert float(again.best) == 2.0
    assert (again.best_occurred.epoch, again.best_occurred.batch) == (4, 9)
    assert made("early_stopper", **settings).state_dict() == {}


def test_the_rate_that_is_logged_is_the_one_that_the_step_was_made_with():
    state, logger, memory = job(lr=0.4)
    schedule = torch.optim.lr_scheduler.LambdaLR(state.optimizers[0], lambda step: 1 / (1 + step))
    callback = made("lr_monitor")
    for _ in range(2):
        callback.run_event(Event.AFTER_TRAIN_BATCH, state, logger)
        state.optimizers[0].step()
        schedule.step()
        state.timestamp = state.timestamp.to_next_batch()
        callback.run_event(Event.BATCH_END, state, logger)
    rates = logged(memory)
    assert rates == {"lr-AdamW/group0": [(1, 0.1), (2, 0.05)], "lr-AdamW/group1": [(1, 0.4), (2, 0.2)]}


def test_a_group_that_lies_in_several_model_parts_is_one():
    state, logger, memory = job()
    halves = [torch.optim.AdamW(part.parameters(), lr=0.1) for part in (state.model.first, state.model.second)]
    state.optimizers = halves  # as pipeline schedules with several stages a rank have
    callbacks = [made("lr_monitor"), made("quasi_hyperbolic_parameter_monitor")]
    for event in (Event.AFTER_TRAIN_BATCH, Event.BATCH_END):
        for callback in callbacks:
            callback.run_event(event, state, logger)
    groups = {name: values for name, values in logged(memory).items() if not name.endswith("beta2")}
    assert groups == {"lr-AdamW/group0": [(0, 0.1)], "quasi_hyperbolic/AdamW/group0/beta1": [(0, 0.9)]}
