"""ADOPT, and QHADOPT: ADOPT with a quasi-hyperbolic first moment. Needs torch alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mosaic_photon.errors import ConfigError
from mosaic_photon.optimizers import update
from mosaic_photon.optimizers.ranges import check_range

Clip = Callable[[Any], Any]
MOMENTS = ("exp_avg", "exp_avg_sq")
WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.complex32: torch.complex64}


def fourth_root(step: Any) -> Any:
    """ADOPT's clipping bound at call `step`, a number or a tensor: step ** 0.25."""
    return step**0.25


class QHADOPT(Optimizer):
    """ADOPT with the step (1 - v1) * g_hat + v1 * m in place of m; v1 = 1 is ADOPT. See `update` for the formula.

    As in ADOPT, call 0 only sets the second moment and there is no bias correction. State per parameter: `step`, a
    scalar, and `exp_avg` and `exp_avg_sq` of the parameter's shape and dtype, float32 where that is narrower: all is
    computed in it, and a parameter is rounded once a step. Parameters may be complex (updated as
    pairs of reals) or DTensors (updated shard by shard).

    Args:
        params: parameters, named parameters or groups of them. A group may set any of lr, betas, v1, eps,
            weight_decay, decouple, maximize, capturable, foreach and fused for itself.
        lr: learning rate; a one-element tensor is read at each step.
        betas: decay rates of the first and second moment, each in [0, 1).
        v1: weight of the momentum in the step, in [0, 1].
        eps: lower bound of the root of the second moment.
        clip_lambda: bound of |g_hat| at call t, a function of t; None does not clip. With `capturable`, t is a tensor.
        weight_decay: L2 penalty added to the gradient, or see `decouple`.
        decouple: multiply parameters by 1 - (lr / initial_lr) * weight_decay instead, the convention of
            llm-foundry's DecoupledAdamW: the decay follows the schedule and is not multiplied by the learning rate.
        foreach: many tensors an operation; the default unless fused. False: tensor by tensor.
        maximize: ascend.
        capturable: keep `step` on the parameter's device and never read it on the host (CUDA graphs).
        fused: one kernel that reads and writes each element once: of Triton on a GPU, of torch.compile elsewhere.

    Raises:
        ConfigError: a hyper-parameter is negative, not finite or out of its range.
        RuntimeError: a gradient is sparse; nothing was updated.
    """

    decay_includes_lr = False
    """Whether decoupled decay is multiplied by lr, so that a parametrization which divides lr must raise it."""

    def __init__(  # noqa: PLR0913, the optimizer's hyper-parameters, as torch spells them
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.999, 0.9999),
        v1: float = 0.9,
        eps: float = 1e-6,
        clip_lambda: Clip | None = fourth_root,
        weight_decay: float = 0.0,
        decouple: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
    ) -> None:
        if clip_lambda is not None and not callable(clip_lambda):
            raise ConfigError(f"{type(self).__name__}: clip_lambda = {clip_lambda!r}: a function of the call is right")
        self.clip_lambda = clip_lambda
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "v1": v1,
            "eps": eps,
            "weight_decay": weight_decay,
            "decouple": decouple,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; checks the group's numbers and notes its learning rate as `initial_lr` unless it has one."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check(type(self).__name__, group)
        group.setdefault("initial_lr", float(group["lr"]))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "clip_lambda": self.clip_lambda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which moves `step` to the device for a fused optimizer; ours stays where the host reads it.

        Torch also brings moments to the parameter's dtype: they keep `moment_dtype`, and those written in a narrower
        one become wider. What the state of another ADOPT (torch-adopt's) does not say of a group stays as it is here.
        """
        before = self.param_groups
        super().load_state_dict(state_dict)
        for group, old in zip(self.param_groups, before, strict=True):
            group.update({key: value for key, value in old.items() if key not in group})
            for p in group["params"]:
                if not group["capturable"] and "step" in self.state.get(p, {}):
                    self.state[p]["step"] = self.state[p]["step"].cpu()
        saved = [
            state_dict["state"].get(index, {}) for group in state_dict["param_groups"] for index in group["params"]
        ]
        params = [p for group in self.param_groups for p in group["params"]]
        for p, state in zip(params, saved, strict=True):
            if p.dtype in WIDER:
                self.state[p].update({key: state[key].to(p.device, moment_dtype(p)) for key in MOMENTS if key in state})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns the closure's loss."""
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_sparse()
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            for p in with_grad:
                if not self.state[p]:
                    self._init_state(p, group)
            if group["capturable"]:
                self._step_capturable(group, with_grad)
            else:
                self._step_group(group, with_grad)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for step, tensors in self._by_step(params):
            h = self._hyper(group, step)
            if step == 0:
                update.first_step(tensors, h)
            elif group["fused"]:
                update.fused(tensors, update.scalars_of(h, tensors.p[0]), h.maximize)
            elif group["foreach"] is False:
                update.for_loop(tensors, h)
            else:
                update.foreach(tensors, h)
        if params:  # one tensor of 1: a number would be made a tensor for each parameter
            torch._foreach_add_([self.state[p]["step"] for p in params], torch.ones(()), alpha=1.0)

    def _step_capturable(self, group: dict[str, Any], params: list[Tensor]) -> None:
        h = self._hyper({**group, "lr": 0.0}, 0)
        for p in params:
            tensors = update.Tensors()
            tensors.append(self._row(p))
            step = self.state[p]["step"]
            zero = torch.zeros((), dtype=update.compute_dtype(tensors.p[0]), device=step.device)
            lr = _like(zero, group["lr"])
            clip = math.inf if self.clip_lambda is None else self.clip_lambda(step.to(lr))
            scalars = update.capturable_scalars(h, lr, _like(zero, self._decay(group, lr)), _like(zero, clip), step)
            form = update.compiled if group["fused"] else update.traced
            form(tensors.columns, scalars, h.maximize)
            step.add_(1)

    def _hyper(self, group: dict[str, Any], step: float) -> update.Hyper:
        lr = float(group["lr"])
        beta1, beta2 = group["betas"]
        return update.Hyper(
            lr=lr,
            decay=float(self._decay(group, lr)),
            coupled=0.0 if group["decouple"] else group["weight_decay"],
            beta1=beta1,
            beta2=beta2,
            v1=group["v1"],
            eps=group["eps"],
            clip=None if self.clip_lambda is None else float(self.clip_lambda(step)),
            maximize=group["maximize"],
        )

    def _decay(self, group: dict[str, Any], lr: Any) -> Any:
        """Share of a parameter that decoupled decay takes away at this learning rate."""
        if not group["decouple"]:
            return 0.0
        initial_lr = float(group["initial_lr"])
        return (lr / initial_lr if initial_lr else 1.0) * group["weight_decay"]

    def _init_state(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        state["step"] = torch.zeros((), device=p.device if group["capturable"] else "cpu")
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(p, dtype=moment_dtype(p), memory_format=torch.preserve_format)

    def _row(self, p: Tensor) -> tuple[Tensor, ...]:
        state = self.state[p]
        assert p.grad is not None
        row = (p.detach(), p.grad, state["exp_avg"], state["exp_avg_sq"])
        return tuple(plain(tensor, p) for tensor in row) if isinstance(p, DTensor) or p.is_complex() else row

    def _by_step(self, params: list[Tensor]) -> Iterator[tuple[float, update.Tensors]]:
        """Parameters of one device, dtype and number of calls together: a late comer has its own call 0."""
        buckets: dict[tuple[Any, ...], update.Tensors] = {}
        for p in params:
            row = self._row(p)
            key = (self.state[p]["step"].item(), p.device, p.dtype)
            if key not in buckets:
                buckets[key] = update.Tensors()
            if row[0].numel():  # a shard may be empty
                buckets[key].append(row)
        for key, tensors in buckets.items():
            if tensors.p:
                yield key[0], tensors

    def _refuse_sparse(self) -> None:
        for group in self.param_groups:
            if any((gradient := p.grad) is not None and gradient.is_sparse for p in group["params"]):
                name = type(self).__name__
                raise RuntimeError(f"{name} does not take sparse gradients: build nn.Embedding with sparse=False")


class ADOPT(QHADOPT):
    """ADOPT, with the defaults and the conventions of the reference package torch-adopt.

    Differs from `QHADOPT(v1=1)` in `decouple`, which here multiplies parameters by 1 - lr * weight_decay.
    """

    decay_includes_lr = True

    def __init__(  # noqa: PLR0913, the optimizer's hyper-parameters, as torch spells them
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_lambda: Clip | None = fourth_root,
        weight_decay: float = 0.0,
        decouple: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            1.0,
            eps,
            clip_lambda,
            weight_decay,
            decouple,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            fused=fused,
        )

    def _decay(self, group: dict[str, Any], lr: Any) -> Any:
        return lr * group["weight_decay"] if group["decouple"] else 0.0


def moment_dtype(p: Tensor) -> torch.dtype:
    """The dtype of a parameter's moments."""
    return WIDER.get(p.dtype, p.dtype)


def plain(tensor: Tensor, param: Tensor) -> Tensor:
    """This rank's part of a tensor that goes with `param`, real and without autograd; it shares the tensor's memory."""
    if isinstance(tensor, DTensor):
        assert isinstance(param, DTensor)
        tensor = tensor.redistribute(param.device_mesh, param.placements).to_local()
    tensor = tensor.detach()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _like(like: Tensor, number: float | Tensor) -> Tensor:
    """A number as a tensor like `like`; written on the device, as a graph capture refuses copies from the host."""
    return number.to(like) if isinstance(number, Tensor) else torch.full_like(like, number)


def _check(name: str, group: dict[str, Any]) -> None:
    """Raise ConfigError for a number that no run can use."""
    for key in ("lr", "eps", "weight_decay", "betas"):
        check_range(name if key == "betas" else f"{name}: {key}", key, group[key])
    if not 0.0 <= group["v1"] <= 1.0:
        raise ConfigError(f"{name}: v1 = {group['v1']}: a number in [0, 1] is right")
    for key in ("decouple", "maximize", "capturable"):
        if not isinstance(group[key], bool):
            raise ConfigError(f"{name}: {key} = {group[key]!r}: true or false is right")
    if group["foreach"] and group["fused"]:
        raise ConfigError(f"{name}: foreach and fused exclude each other: set one")
