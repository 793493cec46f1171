"""A model in the terms of a job, 0.2.2's: flat model args by flavor, and what is made of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn as nn

from mosaic_photon.titan.interface import Builders
from mosaic_photon.titan.v03.names import Names


@dataclass
class BaseModelArgs:
    """The fields that `[model.overrides]` may name."""

    @abstractmethod
    def update_from_config(self, job_config: Any, **kwargs: Any) -> None:
        """Take what the job says of the model, such as its sequence length."""


class ModelProtocol(nn.Module):
    """What 0.3's trainer asks of a model beside its forward pass and `init_weights`."""

    def __init__(self, model_args: Any) -> None:
        super().__init__()

    def verify_module_protocol(self) -> None:
        """0.3 wants its own kind of modules in all places; others have plain ones."""


class OwnConfig:
    """In the place of 0.3's config of a model: it is built from its args."""

    def __init__(self, model_cls: Callable[[Any], nn.Module], args: Any) -> None:
        self.model_cls, self.args = model_cls, args
        self.layers = [None] * args.n_layers

    def build(self) -> nn.Module:
        return self.model_cls(self.args)

    def update_from_config(self, *, config: Any) -> None:
        """The args have been told of the job."""

    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
        """As the args count."""
        counted: tuple[int, int] = self.args.get_nparams_and_flops(model, seq_len)
        return counted

    def traverse(self, *_: Any, **__: Any) -> Iterator[Any]:
        """It has no configs in it."""
        return iter(())


@dataclass
class TrainSpec:
    """What this package asks of 0.2.2's TrainSpecs."""

    model_args: dict[str, Any]
    """By flavor."""
    model_config: Callable[[Any, int | None], Any]
    """Model args, the job's seed -> TorchTitan's config of the model."""
    parallelize_fn: Callable[[Any], Callable[..., nn.Module]]
    """Job -> TorchTitan's function of this name."""
    pipelining_fn: Callable[..., Any] | None
    build_tokenizer_fn: Callable[[Any], Any]
    """The job -> TorchTitan's tokenizer."""
    state_dict_adapter: Callable[..., Any] | None
    """(model args, folder of Hugging Face's files)"""
    builders: Builders
    names: Names
    """What a job calls the model's modules, and what 0.3 does."""
    is_titans: bool = True
    """Whether the model is TorchTitan's, which is told positions and laid out by its own config; another one has plans
    of DTensors."""

    def model_cls(self, args: Any) -> nn.Module:
        """The model."""
        model: nn.Module = self.model_config(args, None).build()
        return model
