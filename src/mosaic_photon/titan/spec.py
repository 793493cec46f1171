"""What TorchTitan asks of a model: TrainSpecs, model args, state dict adapters."""

from typing import TYPE_CHECKING

from torchtitan.protocols.state_dict_adapter import StateDictAdapter

from mosaic_photon.titan.releases import installed

if TYPE_CHECKING or installed().folder == "v02":
    from torchtitan.protocols.model import BaseModelArgs, ModelProtocol
    from torchtitan.protocols.train_spec import TrainSpec, get_train_spec
else:
    from mosaic_photon.titan.v03.args import BaseModelArgs, ModelProtocol, TrainSpec

__all__ = [
    "BaseModelArgs",
    "ModelProtocol",
    "StateDictAdapter",
    "TrainSpec",
    "get_train_spec",
]
