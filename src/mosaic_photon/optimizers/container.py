"""TorchTitan's container of optimizers, with parameter groups, and the job's numbers in force after a resume."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

from mosaic_photon.errors import ask_upstream
from mosaic_photon.optimizers.catalog import Choice
from mosaic_photon.titan.parts import ContainerOf
from mosaic_photon.titan.tools import logger

PREFIX = "param_groups."
NOT_COMPARED = {"lr", "foreach", "fused", "capturable", "differentiable"}
"""The scheduled learning rate (its peak, initial_lr, is compared), and how, not what, is computed."""


class GroupedOptimizers(ContainerOf):
    """One optimizer a model part, each with its own parameter groups.

    Its checkpoint holds TorchTitan's keys. On loading, state comes from the checkpoint and every option of a group
    (lr, betas, eps, weight decay, ...) from the job; each difference is logged. So groups may be cut differently than
    when the checkpoint was written.
    """

    def __init__(self, model_parts: list[nn.Module], choice: Choice, groups: list[list[dict[str, Any]]]) -> None:
        """groups: parameter groups of each model part, in order. Raises ConfigError for what the class refuses."""
        refused = f"{choice.name} does not accept its arguments"
        kinds = (Exception,)  # llm-foundry's raise plain Exception
        optimizers = [ask_upstream(refused, kinds, choice.cls, part, **choice.kwargs) for part in groups]
        super().__init__(model_parts, optimizers, choice.kwargs)

    def state_dict(self) -> dict[str, Any]:
        """State and options by parameter name; state that is missing is made, and is that before the first step."""
        for optimizer in self.optimizers:
            make_state(optimizer)
        state_dict = super().state_dict()
        for key, value in state_dict.items():
            if key.startswith(PREFIX) and torch.is_tensor(value):
                state_dict[key] = value.clone()  # DCP loads in place; a tensor lr in use must stay what it is
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take state from the checkpoint and options from the job."""
        options = {key: value for key, value in self.state_dict().items() if key.startswith(PREFIX)}
        for line in changed_options(options, state_dict):
            logger.info(line)
        super().load_state_dict({**state_dict, **options})


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters without state (not reached yet, or frozen) the one that they have before their first step.

    A checkpoint must have a state for each, as a load asks for all of them, whichever the job has reached by then. Only
    the optimizer knows what its state is, so it is made by a step with zero gradients and lr 0, as DCP does it for an
    optimizer without any; but DCP's step would count, and coupled weight decay would enter the moments.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    without = [p for p in params if not optimizer.state.get(p)]
    if not without:
        return
    before = [(p, p.grad, p.requires_grad) for p in params]
    options = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update({key: 0.0 * group[key] for key in ("lr", "weight_decay") if key in group})
    for p in params:
        p.grad = None
    for p in without:
        p.requires_grad_(True)
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, grad, requires_grad in before:
        p.requires_grad_(requires_grad)
        p.grad = grad
    for group, saved in zip(optimizer.param_groups, options, strict=True):
        group.update(saved)
    for p in without:
        if torch.is_tensor(optimizer.state[p].get("step")):
            optimizer.state[p]["step"].zero_()


def changed_options(job: dict[str, Any], checkpoint: dict[str, Any]) -> list[str]:
    """One line for each option whose value in the checkpoint is not the job's; keys are `param_groups.NAME.OPTION`."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for key, ours in job.items():
        name, option = key.removeprefix(PREFIX).rsplit(".", 1)
        if option in NOT_COMPARED or key not in checkpoint or _same(ours, checkpoint[key]):
            continue
        found.setdefault((option, str(checkpoint[key]), str(ours)), []).append(name)
    return [
        f"optimizer: {'lr' if option == 'initial_lr' else option} is {theirs} in the checkpoint and {ours} in the job; "
        f"the job's is used ({len(names)} parameter{'s' if len(names) > 1 else ''}, first {names[0]})."
        for (option, theirs, ours), names in found.items()
    ]


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return list(ours) == list(theirs)
    return bool(ours == theirs)
