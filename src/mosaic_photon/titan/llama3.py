"""TorchTitan's Llama 3."""

from typing import TYPE_CHECKING

from mosaic_photon.titan.releases import installed

if TYPE_CHECKING or installed().folder == "v02":
    from torchtitan.models.attention import ScaledDotProductAttentionWrapper
    from torchtitan.models.llama3 import Transformer, TransformerModelArgs
    from torchtitan.models.llama3.model.model import TransformerBlock
else:
    from mosaic_photon.titan.v03.llama3 import Llama3Args as TransformerModelArgs

__all__ = ["ScaledDotProductAttentionWrapper", "Transformer", "TransformerBlock", "TransformerModelArgs"]
