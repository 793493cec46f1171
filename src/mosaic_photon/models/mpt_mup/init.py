"""llm-foundry's parameter init on a model whose parameters may be sharded, or that is one stage of a pipeline."""

import warnings

import torch
from llmfoundry.layers_registry import param_init_fns
from torch import nn

from mosaic_photon.compat.layout_independent_init import initialised_by_parts
from mosaic_photon.models.mpt_mup.foundry import MPTMuPConfig


@torch.no_grad()
def init_parameters(model: nn.Module, config: MPTMuPConfig, seed: int) -> None:
    """Initialise every parameter in place, from (seed, parameter name) alone: the same weights in every layout.

    Only modules with parameters of their own are visited: llm-foundry's functions would take everything below a module.
    """
    init = param_init_fns.get(config.init_config["name"])
    with initialised_by_parts(model, seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # llm-foundry's slicing
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                init(module=module, n_layers=config.n_layers, d_model=config.d_model, **config.init_config)
