"""Optimizers by name in a job: fields, parameter groups, resume."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn as nn
from torchtitan.components.optimizer import OptimizersInBackwardContainer
from torchtitan.components.optimizer import build_optimizers as titan_build_optimizers
from torchtitan.config import Optimizer as TitanOptimizerConfig
from torchtitan.distributed import ParallelDims

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import Optimizer as OptimizerConfig
from mosaic_photon.mup.table import ParameterScale
from mosaic_photon.names import clean_name
from mosaic_photon.optimizers import ADOPT, QHADOPT
from mosaic_photon.optimizers.builder import build_optimizers
from mosaic_photon.optimizers.catalog import OURS, REFUSED, TITAN

ONE_PROCESS = ParallelDims(1, 1, 1, 1, 1, 1, 1, world_size=1)


class Scaled(nn.Module):
    """Two hidden layers, a norm and a tied head, with a muP-like parametrization."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleDict({"0": nn.Linear(4, 4), "1": nn.Linear(4, 4)})
        self.norm = nn.LayerNorm(4)
        self.output = nn.Linear(4, 10, bias=False)
        self.output.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x)
        for layer in self.layers.values():
            h = h + layer(h)
        return self.output(self.norm(h))

    def parameter_scales(self):
        scales = {}
        for wrapped, _ in self.named_parameters():
            name = clean_name(wrapped)
            if name.startswith("layers"):
                decay = 4.0 if name.endswith("weight") else 0.0
                scales[name] = ParameterScale(lr=0.25, weight_decay=decay, eps=0.5)
            else:
                scales[name] = ParameterScale(weight_decay=0.0 if "norm" in name else 1.0)
        return scales


def build(model, **config):
    return build_optimizers([model], OptimizerConfig(**config), ONE_PROCESS)


def groups_by_name(container):
    """Parameter name -> its group, over all model parts."""
    found = {}
    for part, optimizer in zip(container.model_parts, container.optimizers, strict=True):
        names = {p: clean_name(name) for name, p in part.named_parameters()}
        found |= {names[p]: group for group in optimizer.param_groups for p in group["params"]}
    return found


def train(model, container, steps):
    losses = []
    for i in steps:
        x = (torch.arange(6) * (i + 1)) % 10
        loss = nn.functional.cross_entropy(model(x), (x + 1) % 10)
        container.zero_grad()
        loss.backward()
        container.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_titans_optimizers_are_titans_to_the_last_bit(name):
    plain = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10))
    theirs, ours = plain, copy.deepcopy(plain)
    stock = titan_build_optimizers([theirs], TitanOptimizerConfig(name=name, lr=1e-2), ONE_PROCESS)
    assert train(ours, build(ours, name=name, lr=1e-2), range(5)) == train(theirs, stock, range(5))


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("decoupled_adamw", "composer.optim.decoupled_weight_decay"),
        ("decoupled_lionw", "llmfoundry.optim.lion"),
        ("qhadopt", "mosaic_photon.optimizers.qhadopt"),
        ("adopt", "mosaic_photon.optimizers.qhadopt"),
    ],
)
def test_registry_names_build_and_train(name, module):
    model = Scaled()
    container = build(model, name=name, lr=1e-3)
    assert type(container.optimizers[0]).__module__ == module
    losses = train(model, container, [0] * 8)
    assert losses[-1] < losses[0]


def test_the_registry_itself_knows_our_optimizers_by_entry_point():
    from llmfoundry import registry

    assert registry.optimizers.get("qhadopt") is QHADOPT
    assert registry.optimizers.get("adopt") is ADOPT


def test_fields_and_kwargs_reach_the_constructor():
    config = {"lr": 0.5, "beta2": 0.95, "v1": 0.7, "weight_decay": 0.1, "decouple": True, "implementation": "for-loop"}
    (group,) = build(nn.Linear(2, 2), name="QHADOPT", **config, kwargs={"eps": 1e-3}).optimizers[0].param_groups
    expected = {"lr": 0.5, "betas": (0.999, 0.95), "v1": 0.7, "weight_decay": 0.1, "decouple": True}
    expected |= {"foreach": False, "eps": 1e-3, "initial_lr": 0.5}
    assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "QHADOP"}, "no optimizer 'QHADOP'. Did you mean 'QHADOPT'"),
        ({"name": "decoupled_adam"}, "Did you mean 'decoupled_adamw'"),
        ({"name": "AdamW", "v1": 0.9}, "optimizer.v1: AdamW does not take it. It takes amsgrad, betas"),
        ({"name": "ADOPT", "v1": 0.9}, "optimizer.v1"),
        ({"name": "decoupled_lionw", "eps": 1e-8}, "optimizer.eps: decoupled_lionw does not take it"),
        ({"name": "decoupled_lionw", "implementation": "fused"}, "optimizer.implementation"),
        ({"name": "QHADOPT", "kwargs": {"max_imize": True}}, "optimizer.kwargs.max_imize.*Did you mean 'maximize'"),
        ({"name": "QHADOPT", "eps": 1.0, "kwargs": {"eps": 1.0}}, "kwargs.eps is set twice, by optimizer.eps"),
        ({"beta1": 0.5, "kwargs": {"betas": [0.5, 0.9]}}, "kwargs.betas is set twice, by optimizer.beta1"),
        ({"implementation": "foreach", "kwargs": {"foreach": False}}, "set twice, by optimizer.implementation"),
        ({"implementation": "for-loop", "kwargs": {"fused": True}}, "set twice, by optimizer.implementation"),
        ({"name": "QHADOPT", "beta1": 1.0}, r"optimizer.beta1: betas = \(1.0, 0.9999\)"),
        ({"name": "decoupled_lionw", "beta1": 1.0}, "optimizer.beta1"),
        ({"name": "decoupled_lionw", "kwargs": {"betas": [0.9]}}, "optimizer.kwargs.betas"),
        ({"name": "decoupled_lionw", "lr": float("nan")}, "optimizer.lr = nan: a finite number >= 0"),
        ({"name": "decoupled_lionw", "lr": 0.0}, r"\[optimizer\] decoupled_lionw does not accept.*LR must be > 0"),
        ({"name": "decoupled_lionw", "weight_decay": -5.0}, "optimizer.weight_decay = -5.0"),
        ({"name": "AdamW", "lr": float("inf")}, "optimizer.lr = inf"),
        ({"name": "AdamW", "weight_decay": float("inf")}, "optimizer.weight_decay = inf"),
        ({"name": "AdamW", "kwargs": {"eps": "small"}}, "optimizer.kwargs.eps = 'small'"),
        ({"name": "AdamW", "kwargs": {"foreach": True, "fused": True}}, "AdamW does not accept its arguments"),
        ({"name": "QHADOPT", "kwargs": {"clip_lambda": 1.0}}, "clip_lambda = 1.0: a function"),
        ({"name": "QHADOPT", "kwargs": {"decouple": "no"}}, "kwargs.decouple = 'no' should be true or false"),
        ({"no_decay": ["nrom"]}, "'nrom' is found in no parameter's name"),
        ({"no_decay": ["("]}, "not a regular expression"),
        ({"name": "QHADOPT", "early_step_in_backward": True}, "Adam and AdamW alone"),
        ({"early_step_in_backward": True}, "cannot be combined with no_decay"),
    ],
    ids=str,
)
def test_a_mistake_is_found_before_the_first_step(config, message):
    with pytest.raises(ConfigError, match=message):
        build(Scaled(), **config)


def test_an_implementation_in_kwargs_takes_the_place_of_the_default():
    (group,) = build(nn.Linear(2, 2), kwargs={"foreach": True}).optimizers[0].param_groups
    assert (group["foreach"], group["fused"], group["lr"]) == (True, None, 8e-4)


def test_sparse_embeddings_are_refused():
    with pytest.raises(ConfigError, match="sparse"):
        build(nn.Sequential(nn.Embedding(4, 2, sparse=True)))


def test_early_step_in_backward_is_titans_own():
    container = build(nn.Linear(2, 2), early_step_in_backward=True, beta1=0.8)
    assert isinstance(container, OptimizersInBackwardContainer)
    assert container.optimizers[0].param_groups[0]["betas"] == (0.8, 0.95)


def test_groups_follow_the_parametrization_where_decay_is_multiplied_by_lr():
    groups = groups_by_name(build(Scaled(), name="AdamW", lr=1.0, weight_decay=0.1, eps=1e-6))
    numbers = {name: (g["lr"], round(g["weight_decay"], 6), g["eps"]) for name, g in groups.items()}
    assert numbers == {
        "embed.weight": (1.0, 0.1, 1e-6),  # once, though it is the head as well
        "layers.0.weight": (0.25, 0.4, 5e-7),
        "layers.0.bias": (0.25, 0.0, 5e-7),
        "layers.1.weight": (0.25, 0.4, 5e-7),
        "layers.1.bias": (0.25, 0.0, 5e-7),
        "norm.weight": (1.0, 0.0, 1e-6),
        "norm.bias": (1.0, 0.0, 1e-6),
    }


@pytest.mark.parametrize(
    ("config", "decay"),
    [
        ({"name": "QHADOPT", "decouple": True}, 0.1),
        ({"name": "QHADOPT"}, 0.1),
        ({"name": "ADOPT", "decouple": True}, 0.4),  # the reference's convention: times lr
        ({"name": "decoupled_adamw"}, 0.1),
        ({"name": "decoupled_lionw"}, 0.1),
        ({"name": "Adam"}, 0.1),
    ],
)
def test_a_decay_that_is_not_multiplied_by_lr_is_not_scaled_but_zero_stays_zero(config, decay):
    groups = groups_by_name(build(Scaled(), lr=1e-3, weight_decay=0.1, **config))
    assert groups["layers.0.weight"]["weight_decay"] == pytest.approx(decay)
    assert groups["layers.0.bias"]["weight_decay"] == groups["norm.weight"]["weight_decay"] == 0
    assert groups["layers.0.weight"]["initial_lr"] == 2.5e-4 if config["name"] != "Adam" else True


def test_no_decay_patterns_make_groups_in_a_fixed_order_and_none_is_empty():
    def build_plain():
        torch.manual_seed(0)
        return build(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), weight_decay=0.1, no_decay=["bias", r"^1\."])

    groups = build_plain().optimizers[0].param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (3, 0.0)]
    assert [len(g["params"]) for g in build_plain().optimizers[0].param_groups] == [1, 3]


def test_names_are_those_of_the_unwrapped_model():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = Scaled()
    model.layers["0"] = checkpoint_wrapper(torch.compile(model.layers["0"]))
    assert "layers.0._checkpoint_wrapped_module._orig_mod.weight" in dict(model.named_parameters())
    groups = groups_by_name(build(model, lr=1.0, weight_decay=0.1))
    assert groups["layers.0.weight"]["lr"] == 0.25


def test_pipeline_parts_have_groups_of_their_own_and_patterns_may_be_anothers():
    parts = [nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))]
    pipelined = ParallelDims(1, 1, 1, 1, 2, 1, 1, world_size=2)
    config = OptimizerConfig(no_decay=["^1", "head"])
    container = build_optimizers(parts, config, pipelined)
    assert [len(optimizer.param_groups) for optimizer in container.optimizers] == [1, 2]
    assert {key for key in container.state_dict() if key.endswith(".lr")}


CONFIGS = [
    {"name": "QHADOPT", "decouple": True},
    {"name": "QHADOPT", "implementation": "fused"},
    {"name": "AdamW"},
    {"name": "Adam"},
    {"name": "decoupled_adamw"},
    {"name": "decoupled_lionw"},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_dcp_checkpoint_resumes_exactly_with_groups(config, tmp_path):
    config = {"lr": 1e-2, "weight_decay": 1e-3, **config}
    model = Scaled()
    container = build(model, **config)
    train(model, container, range(4))
    dcp.save({"model": model.state_dict(), "optimizer": container}, checkpoint_id=tmp_path, no_dist=True)
    expected = train(model, container, range(4, 8))

    resumed = Scaled()
    again = build(resumed, **config)
    state = {"model": resumed.state_dict(), "optimizer": again}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    resumed.load_state_dict(state["model"])
    assert train(resumed, again, range(4, 8)) == expected
    ours, theirs = (
        {name: {k: v for k, v in g.items() if k != "params"} for name, g in groups_by_name(c).items()}
        for c in (container, again)
    )
    assert ours == theirs


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_asking_for_the_state_before_the_first_step_changes_nothing(config):
    """DCP creates missing state by a step with zero gradients; ADOPT's call 0 must still come."""
    config = {"lr": 1e-2, "weight_decay": 1e-3, **config}
    asked, not_asked = Scaled(), Scaled()
    container = build(asked, **config)
    container.state_dict()
    assert train(asked, container, range(4)) == train(not_asked, build(not_asked, **config), range(4))


def all_names():
    import llmfoundry.optim  # noqa: F401  (registers its optimizers)
    from llmfoundry import registry

    return [*TITAN, *OURS, *(set(registry.optimizers.get_all()) - set(OURS))]


@pytest.mark.parametrize("name", sorted(all_names()))
def test_every_name_trains_and_resumes_or_is_refused_with_the_reason(name, tmp_path):
    if name in REFUSED:
        with pytest.raises(ConfigError, match=f"'{name}' is refused: .* checkpoint"):
            build(Scaled(), name=name)
        return
    model, resumed = Scaled(), Scaled()
    container, again = build(model, name=name), build(resumed, name=name)
    train(model, container, range(4))
    dcp.save({"optimizer": container}, checkpoint_id=tmp_path, no_dist=True)
    resumed.load_state_dict(model.state_dict())
    dcp.load({"optimizer": again}, checkpoint_id=tmp_path, no_dist=True)
    assert train(resumed, again, range(4, 6)) == train(model, container, range(4, 6))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_parameter_that_had_no_gradient_is_saved_and_begins_at_its_beginning(config, frozen, tmp_path):
    config = {"lr": 1e-2, "weight_decay": 1e-3, **config}

    def begin(steps):
        model = Scaled()
        container = build(model, **config)
        model.norm.weight.requires_grad_(False)
        train(model, container, steps)
        model.norm.weight.requires_grad_(not frozen)
        return model, container

    (saved, container), (never_saved, untouched), (resumed, again) = begin(range(2)), begin(range(2)), begin([])
    dcp.save({"optimizer": container}, checkpoint_id=tmp_path, no_dist=True)
    resumed.load_state_dict(saved.state_dict())
    resumed.norm.weight.requires_grad_(True)  # a callback that freezes layers does so after the load
    dcp.load({"optimizer": again}, checkpoint_id=tmp_path, no_dist=True)
    resumed.norm.weight.requires_grad_(not frozen)
    expected = train(never_saved, untouched, range(2, 5))
    assert train(saved, container, range(2, 5)) == train(resumed, again, range(2, 5)) == expected


def test_the_jobs_numbers_win_over_the_checkpoints_and_a_line_says_so(tmp_path, caplog):
    model = Scaled()
    before = {"name": "QHADOPT", "lr": 1e-2, "weight_decay": 0.1, "decouple": True}
    container = build(model, **before)
    train(model, container, range(3))
    dcp.save({"optimizer": container}, checkpoint_id=tmp_path, no_dist=True)

    # Another peak and beta, and another cut of the groups, which DCP alone would refuse.
    after = {**before, "lr": 5e-3, "beta2": 0.99, "no_decay": [r"layers\.0"]}
    model = Scaled()
    again = build(model, **after)
    with caplog.at_level(logging.INFO):
        logging.getLogger().addHandler(caplog.handler)
        dcp.load({"optimizer": again}, checkpoint_id=tmp_path, no_dist=True)
    groups = groups_by_name(again)
    assert groups["embed.weight"]["lr"] == groups["embed.weight"]["initial_lr"] == 5e-3
    assert groups["layers.0.weight"]["weight_decay"] == 0
    assert groups["layers.1.weight"]["betas"] == (0.999, 0.99)
    assert float(again.optimizers[0].state[model.embed.weight]["step"]) == 3
    text = caplog.text
    assert (
        "lr is 0.01 in the checkpoint and 0.005 in the job; the job's is used (3 parameters, first embed.weight)"
        in text
    )
    assert "betas is (0.999, 0.9999) in the checkpoint and (0.999, 0.99) in the job" in text
    assert "weight_decay is 0.1 in the checkpoint and 0.0 in the job" in text


def test_the_same_job_resumes_without_such_lines(tmp_path, caplog):
    model = Scaled()
    container = build(model, name="QHADOPT", lr=1e-2)
    container.optimizers[0].param_groups[0]["lr"] = 1e-3  # a schedule's doing
    dcp.save({"optimizer": container}, checkpoint_id=tmp_path, no_dist=True)
    again = build(Scaled(), name="QHADOPT", lr=1e-2)
    with caplog.at_level(logging.INFO):
        dcp.load({"optimizer": again}, checkpoint_id=tmp_path, no_dist=True)
    assert "the job's is used" not in caplog.text
