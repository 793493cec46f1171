"""Models beside TorchTitan's own. Importing this package imports neither llm-foundry nor TorchTitan."""

from typing import TYPE_CHECKING

from mosaic_photon.names import lazy_names

if TYPE_CHECKING:
    from mosaic_photon.models.mpt_mup import (
        MPT_MUP_CONFIGS,
        ComposerMPTMuPCausalLM,
        MPTMuPModelArgs,
        TitanComposerMPTMuP,
    )

__all__ = ["MPT_MUP_CONFIGS", "ComposerMPTMuPCausalLM", "MPTMuPModelArgs", "TitanComposerMPTMuP"]
__getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "mpt_mup"))
