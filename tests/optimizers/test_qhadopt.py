"""QHADOPT and ADOPT: parity with the reference package, equality of the forms, state, and refusals."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from adopt import ADOPT as ReferenceADOPT
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic_photon.errors import ConfigError
from mosaic_photon.optimizers import ADOPT, QHADOPT

SHAPES = [(7, 5), (3,), (1,), (2, 3, 4), ()]
FORMS = [{"foreach": False}, {"foreach": True}, {"fused": True}, {"capturable": True}]
# torch 2.11 renamed what torch-adopt 0.1.0 calls
ReferenceADOPT._cuda_graph_capture_health_check = torch.optim.Optimizer._accelerator_graph_capture_health_check
warnings.filterwarnings("ignore", message=".*is_compiling.*")


def parameters(shapes=SHAPES, dtype=torch.float64):
    gen = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=gen, dtype=dtype)) for shape in shapes]


def run(make, steps=200, shapes=SHAPES, dtype=torch.float64, schedule=None):
    """Parameters after `steps` with gradients whose size swings over five decades, so that clipping binds."""
    params = parameters(shapes, dtype)
    optimizer = make(params)
    gen = torch.Generator().manual_seed(2)
    for i in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=gen, dtype=dtype) * 10.0 ** (i % 5 - 2)
        if schedule:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(i)
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_lambda": None},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decouple": True},
        {"weight_decay": 0.1, "decouple": True, "clip_lambda": None, "maximize": True},
        {"weight_decay": 0.1, "maximize": True, "betas": (0.95, 0.99), "eps": 1e-3},
    ],
    ids=str,
)
def test_adopt_is_the_reference_package_over_200_steps(options, form):
    expected = run(lambda params: ReferenceADOPT(params, lr=1e-2, foreach=False, **options))
    torch.testing.assert_close(run(lambda params: ADOPT(params, lr=1e-2, **options, **form)), expected)


@pytest.mark.parametrize("decouple", [False, True])
def test_qhadopt_with_v1_of_1_is_adopt(decouple):
    """With decoupling, QHADOPT's weight_decay is ADOPT's times lr, at a constant lr."""
    betas = (0.9, 0.9999)
    expected = run(lambda params: ReferenceADOPT(params, lr=1e-2, weight_decay=0.1, decouple=decouple, foreach=False))
    decay = 0.1 * (1e-2 if decouple else 1)
    got = run(lambda params: QHADOPT(params, 1e-2, betas, v1=1.0, weight_decay=decay, decouple=decouple))
    torch.testing.assert_close(got, expected)


def quasi_hyperbolic_reference(params, grads_of, v1, steps=50, lr=1e-2, beta1=0.95, beta2=0.99, eps=1e-6):  # noqa: PLR0913
    """The recipe, written out: ADOPT's normalised gradient through qhoptim's quasi-hyperbolic momentum (QHM)."""
    from qhoptim.pyt import QHM

    v = [torch.zeros_like(p) for p in params]
    qhm = QHM(params, lr=lr, nu=v1, momentum=beta1)
    for t in range(steps):
        for p, second, g in zip(params, v, grads_of(t), strict=True):
            if t == 0:
                second.copy_(g * g)
                continue
            p.grad = (g / second.sqrt().clamp(min=eps)).clamp(-(t**0.25), t**0.25)
            second.mul_(beta2).add_(g * g, alpha=1 - beta2)
        if t > 0:
            qhm.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("v1", [0.0, 0.7, 0.9])
def test_the_step_is_qhoptims_momentum_of_adopts_gradient(v1, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # qhoptim calls add_ in a deprecated way

        def grads_of(t):
            gen = torch.Generator().manual_seed(100 + t)
            return [torch.randn(shape, generator=gen, dtype=torch.float64) for shape in SHAPES]

        expected = quasi_hyperbolic_reference(parameters(), grads_of, v1)
    params = parameters()
    optimizer = QHADOPT(params, lr=1e-2, betas=(0.95, 0.99), v1=v1, **form)
    for t in range(50):
        for p, g in zip(params, grads_of(t), strict=True):
            p.grad = g
        optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], expected)


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    v1=st.sampled_from([0.0, 0.9, 1.0]),
    decouple=st.booleans(),
    clipped=st.booleans(),
    maximize=st.booleans(),
)
def test_all_forms_agree(shapes, dtype, v1, decouple, clipped, maximize):
    # In bfloat16 coupled decay may cancel a gradient down to its rounding error, which the quotient then magnifies.
    decouple |= dtype == torch.bfloat16
    options = {"lr": 1e-2, "v1": v1, "weight_decay": 0.01, "decouple": decouple, "maximize": maximize}
    if not clipped:
        options["clip_lambda"] = None
    steps = 4

    def of(form, steps):
        return run(lambda params: QHADOPT(params, **options, **form), steps, shapes, dtype)

    if dtype == torch.bfloat16:
        # The forms differ in float32's last bits, so that a parameter, rounded once a step, may go either way: by the
        # spacing of bfloat16 at the largest value that it has had, whatever it is at the end.
        path = [of(FORMS[0], count) for count in range(steps + 1)]
        for form in FORMS[1:]:
            for index, other in enumerate(of(form, steps)):
                largest = torch.stack([values[index].float().abs() for values in path]).amax(0)
                allowed = steps * torch.finfo(dtype).eps * largest + 1e-6
                assert ((other.float() - path[-1][index].float()).abs() <= allowed).all()
        return
    expected, tolerance = of(FORMS[0], steps), {torch.float64: 1e-9, torch.float32: 1e-4}[dtype]
    for form in FORMS[1:]:
        torch.testing.assert_close(of(form, steps), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_second_moment_of_a_narrow_parameter_forgets(form, dtype):
    """0.9999 is 1 in bfloat16. The first gradient is 1, those after it 0.01; the recipe says 0.96 after 400 steps."""
    p = torch.nn.Parameter(torch.zeros(64, dtype=dtype))
    optimizer = QHADOPT([p], lr=1e-3, **form)
    for step in range(400):
        p.grad = torch.full_like(p, 1.0 if step == 0 else 0.01)
        optimizer.step()
    moment, small = optimizer.state[p]["exp_avg_sq"], float(torch.tensor(0.01, dtype=dtype)) ** 2
    torch.testing.assert_close(moment, torch.full((64,), 0.9999**399 + (1 - 0.9999**399) * small), rtol=1e-4, atol=0)


def train(params, optimizer, steps):
    for i in steps:
        for p in params:
            p.grad = torch.full_like(p, 0.1 * (i + 1))
        optimizer.step()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_states_of_a_narrow_parameter_load_in_float32(form):
    """Torch brings what it loads to the parameter's dtype; states of before are in it."""

    params = parameters(dtype=torch.bfloat16)
    optimizer = QHADOPT(params, lr=1e-2, **form)
    train(params, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    restored = QHADOPT(copies, lr=1e-2, **form)
    restored.load_state_dict(saved)
    train(params, optimizer, range(3, 6))
    train(copies, restored, range(3, 6))
    torch.testing.assert_close(copies, params, rtol=0, atol=0)

    old = copy.deepcopy(saved)
    for state in old["state"].values():
        state |= {key: state[key].bfloat16() for key in ("exp_avg", "exp_avg_sq")}
    restored.load_state_dict(old)
    for p, state in zip(copies, old["state"].values(), strict=True):
        torch.testing.assert_close(restored.state[p]["exp_avg_sq"], state["exp_avg_sq"].float(), rtol=0, atol=0)


def test_blocks_cut_large_transposed_and_small_tensors_without_changing_the_result(monkeypatch):
    monkeypatch.setattr("mosaic_photon.optimizers.update.CPU_BLOCK", 50)
    monkeypatch.setattr("mosaic_photon.optimizers.update.CPU_GRAIN", 50)
    shapes = [(40, 30), (3,), (1000,), (7, 5), (2,)]

    def transposed(form):
        def make(params):
            params[0].data = params[0].data.t().contiguous().t()
            return QHADOPT(params, lr=1e-2, **form)

        return make

    expected = run(transposed({"foreach": False}), 5, shapes)
    torch.testing.assert_close(run(transposed({"foreach": True}), 5, shapes), expected, rtol=0, atol=0)


def test_the_accelerator_form_of_fused_takes_whole_lists():
    """Without an accelerator the list graph is compiled for the CPU: the same graph, another back end."""
    from mosaic_photon.optimizers import update

    def row(seed):
        gen = torch.Generator().manual_seed(seed)
        return [torch.rand(5, 3, generator=gen, dtype=torch.float64) for _ in range(4)]

    h = update.Hyper(0.1, 0.01, 0.0, 0.9, 0.99, 0.9, 1e-6, 1.5, False)
    expected, got = update.Tensors(), update.Tensors()
    for seed in range(3):
        expected.append(tuple(row(seed)))
        got.append(tuple(row(seed)))
    update.for_loop(expected, h)
    lists = [got.p, got.g, got.m, got.v]
    with torch._dynamo.config.patch(recompile_limit=64):
        update._compiled(False)(lists, update.scalars_of(h, got.p[0]), False)
    torch.testing.assert_close(lists, [expected.p, expected.g, expected.m, expected.v])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_complex_parameters_are_pairs_of_reals(form):
    complex_p = torch.nn.Parameter(torch.complex(torch.arange(4.0), torch.arange(4.0) - 2))
    real_p = torch.nn.Parameter(torch.view_as_real(complex_p.detach().clone()))
    complex_opt, real_opt = (QHADOPT([p], lr=1e-2, weight_decay=0.1, **form) for p in (complex_p, real_p))
    for i in range(3):
        complex_p.grad = torch.complex(torch.full((4,), i + 1.0), torch.full((4,), -0.5))
        real_p.grad = torch.view_as_real(complex_p.grad)
        complex_opt.step()
        real_opt.step()
    torch.testing.assert_close(torch.view_as_real(complex_p.detach()), real_p.detach())


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_decoupled_decay_follows_the_schedule_and_skips_call_0(form):
    """Without a gradient only decay acts: times 1 - (lr / initial_lr) * wd at each call but the first."""
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = QHADOPT([p], lr=0.5, weight_decay=0.1, decouple=True, **form)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [1.0, 1.0, 0.5, 0.25][min(step, 3)])
    expected = 1.0
    for factor in (0.0, 1.0, 0.5, 0.25):
        p.grad = torch.zeros_like(p)
        optimizer.step()
        scheduler.step()
        expected *= 1 - factor * 0.1
        torch.testing.assert_close(p.detach(), torch.full_like(p, expected))
    assert optimizer.param_groups[0]["initial_lr"] == 0.5


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_tensor_learning_rate_is_read_at_each_step(form):
    def schedule(i):
        return 1 / (1 + i)

    def tensor_lr(params):
        optimizer = QHADOPT(params, lr=torch.tensor(0.1, dtype=torch.float64), **form)
        assert torch.is_tensor(optimizer.param_groups[0]["lr"])
        return optimizer

    expected = run(lambda params: QHADOPT(params, lr=0.1), 10, schedule=schedule)
    torch.testing.assert_close(run(tensor_lr, 10, schedule=schedule), expected)


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    p = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = QHADOPT([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure)) for _ in range(20)]
    assert losses[0] == 9.0 and losses[-1] < losses[0]


def test_a_parameter_that_gets_its_first_gradient_late_has_its_own_call_0():
    """As an expert that no token reached: the others are far ahead when it starts."""
    early, late, alone = parameters([(3,), (3,), (3,)])
    alone.data = late.data.clone()
    together, single = QHADOPT([early, late], lr=0.1), QHADOPT([alone], lr=0.1)
    for i in range(6):
        early.grad = torch.ones_like(early)
        late.grad = torch.full_like(late, 0.3) if i >= 3 else None
        together.step()
        if i >= 3:
            alone.grad = torch.full_like(alone, 0.3)
            single.step()
    torch.testing.assert_close(late, alone, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_state_survives_torch_save_and_goes_on_exactly(form):
    params = parameters()
    optimizer = QHADOPT(params, lr=1e-2, weight_decay=0.1, decouple=True, **form)
    train(params, optimizer, range(3))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    restored = QHADOPT(copies, lr=1e-2, weight_decay=0.1, decouple=True, **form)
    restored.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    train(params, optimizer, range(3, 6))
    train(copies, restored, range(3, 6))
    torch.testing.assert_close(copies, params, rtol=0, atol=0)
    assert {len(state) for state in optimizer.state.values()} == {3}  # step and two moments


def test_a_state_of_torch_adopt_goes_on_as_it_would_there():
    params, options = parameters(), {"lr": 1e-2, "weight_decay": 0.1, "decouple": True}
    reference = ReferenceADOPT(params, **options)
    train(params, reference, range(3))
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours = ADOPT(copies, **options)
    ours.load_state_dict(copy.deepcopy(reference.state_dict()))
    train(params, reference, range(3, 6))
    train(copies, ours, range(3, 6))
    torch.testing.assert_close(copies, params)
    assert ours.param_groups[0]["initial_lr"] == 1e-2


def test_an_optimizer_can_be_copied_and_goes_on():
    def clip(step):
        return 0.5

    def train(optimizer):
        (p,) = optimizer.param_groups[0]["params"]
        for _ in range(3):
            p.grad = torch.ones_like(p)
            optimizer.step()
        return p.detach()

    optimizer = QHADOPT([torch.nn.Parameter(torch.ones(3))], lr=1e-2, clip_lambda=clip)
    train(optimizer)
    duplicate = copy.deepcopy(optimizer)
    torch.testing.assert_close(train(duplicate), train(optimizer), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": float("inf")}, "lr"),
        ({"lr": torch.ones(2)}, "lr"),
        ({"eps": -1e-8}, "eps"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"betas": (0.9, -0.1)}, "betas"),
        ({"betas": (0.9, float("nan"))}, "betas"),
        ({"v1": 1.1}, "v1"),
        ({"decouple": "no"}, "decouple"),
        ({"maximize": 1}, "maximize"),
        ({"foreach": True, "fused": True}, "foreach"),
    ],
    ids=str,
)
def test_a_hyper_parameter_that_no_run_can_use_is_refused(options, named):
    with pytest.raises(ConfigError, match=named):
        QHADOPT(parameters(), **options)
    with pytest.raises(ConfigError, match=named):  # a group's own value is checked too
        QHADOPT([{"params": parameters(), **options}])


def test_sparse_gradients_are_refused_before_anything_is_updated():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    dense = torch.nn.Parameter(torch.ones(2))
    embedding(torch.tensor([1])).sum().backward()
    dense.grad = torch.ones(2)
    optimizer = QHADOPT([dense, embedding.weight])
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert not optimizer.state
