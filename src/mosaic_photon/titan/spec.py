"""What TorchTitan asks of a model: TrainSpecs, model args, state dict adapters."""

from torchtitan.models import _supported_models
from torchtitan.protocols import BaseStateDictAdapter, train_spec
from torchtitan.protocols.model import BaseModelArgs, ModelProtocol
from torchtitan.protocols.state_dict_adapter import StateDictAdapter
from torchtitan.protocols.train_spec import TrainSpec, get_train_spec, register_train_spec

__all__ = [
    "BaseModelArgs",
    "BaseStateDictAdapter",
    "ModelProtocol",
    "StateDictAdapter",
    "TrainSpec",
    "_supported_models",
    "get_train_spec",
    "register_train_spec",
    "train_spec",
]
