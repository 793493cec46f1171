"""What TorchTitan's adapters make of a model in Hugging Face's format: names, and what they leave out."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import torch.nn as nn

from mosaic_photon.checkpoints.find import HF_INDEX
from mosaic_photon.errors import ConfigError

if TYPE_CHECKING:
    from mosaic_photon.job.tables import MosaicJobConfig
    from mosaic_photon.titan.spec import TrainSpec


def in_hf_format(job: MosaicJobConfig, spec: TrainSpec, model: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """The model's tensors under Hugging Face's names, and parameters that are lost on the way there and back.

    Args:
        model: on the meta device.

    Raises:
        ConfigError: TorchTitan's adapter does not know one of the names.
    """
    adapter = spec.state_dict_adapter(spec.model_args[job.model.flavor], None)
    state = model.state_dict()
    try:
        named = adapter.to_hf(state)
    except KeyError as error:
        raise ConfigError(
            f"checkpoint: {job.model.name} {job.model.flavor} has no Hugging Face format: TorchTitan's adapter does "
            f"not know {error}."
        ) from None
    back = adapter.from_hf(dict(named))
    return named, [name for name, _ in model.named_parameters() if name in state and name not in back]


def check_index(job: MosaicJobConfig, spec: TrainSpec) -> None:
    """The index of weights beside the tokenizer, which TorchTitan's adapter reads in every job, must be one."""
    path = os.path.join(job.model.hf_assets_path, HF_INDEX)
    if spec.state_dict_adapter is None or not os.path.isfile(path):
        return
    try:
        with open(path) as file:
            files = set(json.load(file)["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"model.hf_assets_path: {path} is not an index of weights ({error!r}).") from None
    for name in files:
        if not re.search(r"\d", str(name)):
            raise ConfigError(
                f"model.hf_assets_path: {path} names the file {name!r}, and TorchTitan takes names with a number only. "
                "One file needs no index: remove it."
            )
