"""TorchTitan's Llama 3."""

from torchtitan.models.attention import ScaledDotProductAttentionWrapper
from torchtitan.models.llama3 import Transformer, TransformerModelArgs
from torchtitan.models.llama3.model.model import TransformerBlock

__all__ = ["ScaledDotProductAttentionWrapper", "Transformer", "TransformerBlock", "TransformerModelArgs"]
