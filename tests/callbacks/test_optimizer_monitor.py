"""OptimizerMonitor against Composer's own, against norms taken one by one, and against closed forms."""

import math

import pytest
import torch
from composer import Trainer
from composer.callbacks import OptimizerMonitor as ComposersMonitor
from composer.core import State
from composer.devices import DeviceCPU
from composer.loggers import InMemoryLogger, Logger
from composer.models import ComposerModel
from composer.optim import DecoupledAdamW
from llmfoundry.optim import DecoupledAdaLRLion
from torch.utils.data import DataLoader, TensorDataset

from mosaic_photon.callbacks import OptimizerMonitor, QuasiHyperbolicParameterMonitor
from mosaic_photon.callbacks.curvature import MEASURES
from mosaic_photon.callbacks.interval import Interval
from mosaic_photon.optimizers import QHADOPT


class Regression(ComposerModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
        self.unused = torch.nn.Linear(3, 3)

    def forward(self, batch):
        return self.layers(batch[0])

    def loss(self, outputs, batch):
        return torch.nn.functional.mse_loss(outputs, batch[1])


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 8, generator=generator), torch.randn(6, 4, generator=generator)) for _ in range(count)]


def fit(optimizer, *callbacks, steps=4):
    """Metrics that the callbacks log in Composer's Trainer: name -> {batch: value}."""
    model = Regression()
    memory = InMemoryLogger()
    data = TensorDataset(*(torch.cat(column) for column in zip(*batches(steps), strict=True)))
    trainer = Trainer(
        model=model,
        optimizers=optimizer(model.parameters()),
        train_dataloader=DataLoader(data, batch_size=6),
        max_duration=f"{steps}ba",
        callbacks=list(callbacks),
        loggers=[memory],
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    return {
        name: {stamp.batch.value: float(value) for stamp, value in data}
        for name, data in memory.data.items()
        if name.split("/")[0] not in ("time", "loss", "trainer", "metrics") and "/" in name
    }


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: DecoupledAdamW(params, lr=1e-2, weight_decay=0.0),
        lambda params: DecoupledAdaLRLion(params, lr=1e-3, weight_decay=0.0),
    ],
    ids=["DecoupledAdamW", "DecoupledAdaLRLion"],
)
@pytest.mark.filterwarnings("ignore:optimizer_monitor reports")
def test_logs_composers_metrics_with_composers_values(optimizer):
    theirs = fit(optimizer, ComposersMonitor(batch_log_interval=2))
    ours = fit(optimizer, OptimizerMonitor(batch_log_interval=2))
    assert len(theirs) > 10
    for name, values in theirs.items():
        assert values.keys() == ours[name].keys() == {2, 4}, name
        assert ours[name] == pytest.approx(values, rel=1e-5, abs=1e-9), name


def bare_loop(optimizer, *callbacks, steps=4, model=None, loader=None):
    """The same as `fit` with a plain training loop, Composer's State and Logger, and no Composer Trainer."""
    model = model or Regression()
    memory = InMemoryLogger()
    state = State(model, 0, "run", DeviceCPU(), max_duration=f"{steps}ba", optimizers=optimizer(model.parameters()))
    logger = Logger(state, memory)
    memory.init(state, logger)
    facts = []
    for callback in callbacks:
        callback.fit_start(state, logger)
    for batch in loader or batches(steps):
        state.optimizers[0].zero_grad()
        model.loss(model(batch), batch).backward()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for callback in callbacks:
            callback.after_train_batch(state, logger)
        state.optimizers[0].step()
        facts.append((model, before, state.optimizers[0].state, {n: p.grad for n, p in model.named_parameters()}))
        expected = expected_metrics(*facts[-1])
        state.timestamp = state.timestamp.to_next_batch(samples=6, tokens=60)
        for callback in callbacks:
            callback.batch_end(state, logger)
    metrics = {name: {stamp.batch.value: value for stamp, value in data} for name, data in memory.data.items()}
    return metrics, expected


def expected_metrics(model, before, states, gradients):
    """Each number taken by itself with torch.linalg."""
    metrics = {}
    groups = {"grad": {}, "param": {}, "update": {}, "moment": {}, "moment2": {}}
    for name, parameter in model.named_parameters():
        if gradients[name] is None:
            continue
        groups["grad"][name] = gradients[name]
        groups["param"][name] = parameter.detach()
        groups["update"][name] = parameter.detach() - before[name]
        groups["moment"][name] = states[parameter]["exp_avg"]
        groups["moment2"][name] = states[parameter]["exp_avg_sq"]
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            metrics[f"l2_norm/{group}/{name}"] = torch.linalg.vector_norm(tensor).item()
        everything = torch.cat([tensor.flatten() for tensor in tensors.values()])
        metrics[f"l2_norm/{group}/global"] = torch.linalg.vector_norm(everything).item()
        if group == "moment2":
            for name, tensor in [*tensors.items(), ("global", everything)]:
                metrics[f"min/moment2/{name}"] = tensor.min().item()
                metrics[f"max/moment2/{name}"] = tensor.max().item()
    return metrics


def adamw(params):
    return torch.optim.AdamW(params, lr=1e-2, weight_decay=0.3)


@pytest.mark.filterwarnings("ignore:optimizer_monitor reports")
@pytest.mark.parametrize("optimizer", [adamw, lambda params: QHADOPT(params, lr=1e-2, weight_decay=0.1, decouple=True)])
def test_measures_exactly_in_a_bare_loop(optimizer):
    metrics, expected = bare_loop(optimizer, OptimizerMonitor(interval=2))
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name].keys() == {2, 4}
        assert metrics[name][4] == pytest.approx(value, rel=1e-6), name


@pytest.mark.filterwarnings("ignore:optimizer_monitor reports")
def test_same_numbers_in_composers_trainer_and_in_a_bare_loop():
    in_trainer = fit(adamw, OptimizerMonitor(interval=1, curvature=True))
    in_loop, _ = bare_loop(adamw, OptimizerMonitor(interval=1, curvature=True))
    assert in_trainer.keys() == in_loop.keys()
    for name, values in in_loop.items():
        assert in_trainer[name] == pytest.approx(values, rel=1e-5), name


@pytest.mark.filterwarnings("ignore:optimizer_monitor reports")
def test_only_global_and_gradients_only():
    everything, _ = bare_loop(adamw, OptimizerMonitor(interval=4, curvature=True))
    overall, _ = bare_loop(adamw, OptimizerMonitor(interval=4, curvature=True, only_global=True))
    assert overall == {
        name: values for name, values in everything.items() if ".weight" not in name and ".bias" not in name
    }
    gradients, _ = bare_loop(adamw, OptimizerMonitor(log_optimizer_metrics=False, batch_log_interval=4))
    assert set(gradients) == {name for name in everything if name.startswith("l2_norm/grad/")}


class WithLateExpert(Regression):
    """Its last layer gets gradients from the third batch on, as an expert that nothing was routed to before."""

    def __init__(self):
        super().__init__()
        self.late, self.calls = torch.nn.Linear(4, 4), 0

    def forward(self, batch):
        self.calls += 1
        outputs = super().forward(batch)
        return outputs if self.calls < 3 else self.late(outputs)


@pytest.mark.filterwarnings("ignore:optimizer_monitor reports")
@pytest.mark.parametrize("optimizer", [adamw, lambda params: DecoupledAdamW(params, lr=1e-2, weight_decay=0.0)])
def test_a_parameter_whose_first_gradient_comes_late(optimizer):
    metrics, expected = bare_loop(optimizer, OptimizerMonitor(interval=1, curvature=True), model=WithLateExpert())
    for name, value in expected.items():
        assert metrics[name].keys() == ({3, 4} if "late" in name else {1, 2, 3, 4}), name
        assert metrics[name][4] == pytest.approx(value, rel=1e-6), name
    assert not any("unused" in name for name in metrics)


class Bowl(ComposerModel):
    """f(x) = a/2 |x|²: gradient a·x, so every measure of curvature is known."""

    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 3.0]))

    def forward(self, batch):
        return batch / 2 * self.x.square().sum()

    def loss(self, outputs, batch):
        return outputs


@pytest.mark.filterwarnings("ignore:optimizer_monitor reports")
@pytest.mark.parametrize("interval, reported", [(1, {2, 3, 4}), (3, {3}), ("60tok", {3, 4})])
def test_curvature_of_a_quadratic(interval, reported):
    a = 2.5
    metrics, _ = bare_loop(
        lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.0),
        OptimizerMonitor(interval=interval, curvature=True),
        model=Bowl(),
        loader=[torch.tensor(a)] * 4,
    )
    expected = {
        "long_bb": 1 / a,
        "short_bb": 1 / a,
        "local_lipschitz": a,
        "second_derivative_estimate": a * math.sqrt(4),
    }
    for measure, value in expected.items():
        for suffix in ("x", "mean", "median", "min", "max"):
            assert metrics[f"curvature/{measure}/{suffix}"] == pytest.approx(dict.fromkeys(reported, value), rel=1e-3)
    assert metrics["curvature/local_lipschitz/global"][3] == pytest.approx(a, rel=1e-3)
    assert {name.split("/")[1] for name in metrics if name.startswith("curvature")} == set(MEASURES)


@pytest.mark.filterwarnings("ignore:optimizer_monitor reports")
@pytest.mark.parametrize(
    "interval, reported", [(3, {3, 6}), ("2ba", {2, 4, 6}), ("120tok", {3, 5}), ("12sp", {3, 5}), ("0.5dur", {3, 6})]
)
def test_interval_in_any_unit(interval, reported):
    metrics, _ = bare_loop(adamw, OptimizerMonitor(interval=interval), steps=6)
    assert metrics["l2_norm/grad/global"].keys() == reported


@pytest.mark.parametrize("run, reported", [("100ba", range(10, 101, 10)), ("1000sp", range(11, 101, 10))])
def test_shares_of_a_run_are_not_lost_to_rounding(run, reported):
    """A run in samples: of 10 each, so that after 10 steps a tenth has passed, and the next to begin is reported."""
    model = Regression()
    state = State(model, 0, "run", DeviceCPU(), max_duration=run, optimizers=adamw(model.parameters()))
    interval = Interval("0.1dur")
    interval.start(state)
    due = []
    for step in range(1, 101):
        if interval.due(state)[0]:
            due.append(step)
        state.timestamp = state.timestamp.to_next_batch(samples=10)
    assert due == list(reported)


def test_intervals_refused_and_warned_about():
    with pytest.warns(UserWarning, match="below 10"):
        OptimizerMonitor(interval="9ba")
    with pytest.raises(ValueError, match="positive"):
        OptimizerMonitor(interval=0)
    with pytest.raises(ValueError, match="give one"):
        OptimizerMonitor(batch_log_interval=10, interval="10ba")


class QHAdam(torch.optim.AdamW):
    def __init__(self, params):
        params = list(params)
        super().__init__([{"params": params[:1]}, {"params": params[1:], "betas": (0.8, 0.95)}], lr=1e-3)
        self.param_groups[0]["v1"], self.param_groups[1]["v1"] = 0.9, 0.7


def test_quasi_hyperbolic_values_of_each_group_every_batch():
    expected = {
        "quasi_hyperbolic/QHAdam/group0/v1": 0.9,
        "quasi_hyperbolic/QHAdam/group0/beta1": 0.9,
        "quasi_hyperbolic/QHAdam/group0/beta2": 0.999,
        "quasi_hyperbolic/QHAdam/group1/v1": 0.7,
        "quasi_hyperbolic/QHAdam/group1/beta1": 0.8,
        "quasi_hyperbolic/QHAdam/group1/beta2": 0.95,
    }
    qhadopt, _ = bare_loop(lambda params: QHADOPT(params, v1=0.75), QuasiHyperbolicParameterMonitor())
    assert qhadopt["quasi_hyperbolic/QHADOPT/group0/v1"] == dict.fromkeys(range(1, 5), 0.75)
    assert fit(QHAdam, QuasiHyperbolicParameterMonitor(), steps=2) == {
        name: {1: value, 2: value} for name, value in expected.items()
    }
