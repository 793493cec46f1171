"""Layers of experts on TorchTitan 0.3, by 0.2.2's model args."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.models.common.config_utils import make_moe_config, make_routed_experts_config, make_router_config
from torchtitan.models.common.moe import GroupedExperts

from mosaic_photon.errors import ConfigError
from mosaic_photon.titan.v03.models import STD, cut_normal, feed_forward, widened


@dataclass
class MoEArgs:
    """0.2.2's."""

    num_experts: int = 8
    num_shared_experts: int = 1
    score_func: Literal["softmax", "sigmoid"] = "sigmoid"
    route_norm: bool = False
    route_scale: float = 1.0
    gate_bias: bool = False
    score_before_experts: bool = True
    top_k: int = 1
    num_expert_groups: int | None = None
    num_limited_groups: int | None = None
    use_grouped_mm: bool = True
    load_balance_coeff: float | None = 1e-3


class Experts(GroupedExperts):
    """TorchTitan's, which multiply in bfloat16, or as 0.2.2's one after another in the weights' dtype."""

    @dataclass(kw_only=True, slots=True)
    class Config(GroupedExperts.Config):
        grouped: bool

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.grouped = config.grouped

    def forward(self, x_RD: Tensor, num_tokens_per_expert_E: Tensor) -> Tensor:
        """TorchTitan shards arguments by their names."""
        if self.grouped:
            return super().forward(x_RD, num_tokens_per_expert_E)
        weights = (self.w1_EFD, self.w2_EDF, self.w3_EFD)
        w1, w2, w3 = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights)
        counts = [int(count) for count in num_tokens_per_expert_E.tolist()]
        parts = [
            F.linear(F.silu(F.linear(part, w1[expert])) * F.linear(part, w3[expert]), w2[expert])
            for expert, part in enumerate(x_RD[: sum(counts)].split(counts))
        ]
        return F.pad(torch.cat(parts), (0, 0, 0, len(x_RD) - sum(counts)))


def experts(args: MoEArgs, dim: int, hidden_dim: int, last: float) -> Any:
    """0.3's config of a layer's experts, as 0.2.2 has them. last: see `feed_forward`.

    Raises:
        ConfigError: tokens would be weighed before the experts see them, which 0.3 does after.
    """
    if args.score_before_experts:
        raise ConfigError(
            "the model's moe_args.score_before_experts = true: TorchTitan 0.3 weighs what experts have made of a "
            "token; set it to false, or train on 0.2.2."
        )
    init = cut_normal(STD, name="w1_EFD") | cut_normal(last, name="w2_EDF") | cut_normal(last, name="w3_EFD")
    routed = make_routed_experts_config(
        dim=dim, hidden_dim=hidden_dim, num_experts=args.num_experts, top_k=args.top_k, param_init=init,
        comm_backend="standard",
    )  # fmt: skip
    routed.inner_experts = widened(Experts.Config, routed.inner_experts, grouped=args.use_grouped_mm)
    shared = args.num_shared_experts
    return make_moe_config(
        num_experts=args.num_experts,
        router=make_router_config(
            dim=dim, num_experts=args.num_experts, gate_param_init=cut_normal(last) | {"bias": nn.init.zeros_},
            top_k=args.top_k, score_func=args.score_func, route_norm=args.route_norm, route_scale=args.route_scale,
            num_expert_groups=args.num_expert_groups, num_limited_groups=args.num_limited_groups, bias=args.gate_bias,
        ),
        routed_experts=routed,
        shared_experts=feed_forward(dim, hidden_dim * shared, last) if shared else None,
        load_balance_coeff=args.load_balance_coeff,
    )  # fmt: skip
