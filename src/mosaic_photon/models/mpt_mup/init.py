"""llm-foundry's parameter init on a model whose parameters may be sharded, or that is one stage of a pipeline."""

import hashlib
import warnings

import torch
from llmfoundry.layers_registry import param_init_fns
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from mosaic_photon.models.mpt_mup.foundry import MPTMuPConfig
from mosaic_photon.names import clean_name


@torch.no_grad()
def init_parameters(model: nn.Module, config: MPTMuPConfig, seed: int) -> None:
    """Initialise every parameter in place, from (seed, module name) alone: the same weights in every layout.

    Every rank draws the whole tensors of one module at a time and keeps its shards; nothing is sent. Only modules with
    parameters of their own are visited: llm-foundry's functions would gather everything below a module.
    """
    init = param_init_fns.get(config.init_config["name"])
    for module_name, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if not parameters:
            continue
        device = next(iter(parameters.values())).device
        whole = {n: nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=device)) for n, p in parameters.items()}
        _swap(module, whole)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # llm-foundry's slicing
            torch.manual_seed(_module_seed(seed, clean_name(module_name)))
            init(module=module, n_layers=config.n_layers, d_model=config.d_model, **config.init_config)
        _swap(module, parameters)
        for name, parameter in parameters.items():
            parameter.copy_(_placed_like(whole[name].detach(), parameter))


def _module_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1


def _swap(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        module._parameters[name] = parameter


def _placed_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Every rank holds the same `whole`, so its shard is a local slice: no communication."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh = parameter.device_mesh
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(mesh, parameter.placements)
