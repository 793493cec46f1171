"""llm-foundry's LayerFreezing asks each rank for all of its layers, of which a pipeline stage has some.

No upstream issue. llm-foundry 0.22.0. Delete when LayerFreezing passes over layers of other ranks. Names that no rank
has are found before there is a model, in `callbacks/refused.py`.
"""

from composer.core import State
from composer.loggers import Logger
from llmfoundry.callbacks import LayerFreezing as FoundrysLayerFreezing

NEEDED = "llm-foundry"


class LayerFreezing(FoundrysLayerFreezing):
    """llm-foundry's, of the layers that this rank has."""

    def fit_start(self, state: State, logger: Logger) -> None:
        """Freeze them."""
        self.layer_names &= {name for name, _ in state.model.named_parameters()}
        if self.layer_names:
            super().fit_start(state, logger)
