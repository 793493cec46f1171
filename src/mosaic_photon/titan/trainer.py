"""TorchTitan's training loop."""

from torchtitan.train import Trainer

__all__ = ["Trainer"]
