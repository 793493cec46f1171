"""What TorchTitan asks of a model: TrainSpecs, model args, state dict adapters."""

from torchtitan.protocols.model import BaseModelArgs, ModelProtocol
from torchtitan.protocols.state_dict_adapter import StateDictAdapter
from torchtitan.protocols.train_spec import TrainSpec, get_train_spec

__all__ = [
    "BaseModelArgs",
    "ModelProtocol",
    "StateDictAdapter",
    "TrainSpec",
    "get_train_spec",
]
