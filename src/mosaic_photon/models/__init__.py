"""Models beside TorchTitan's own. Importing this package imports neither llm-foundry nor TorchTitan."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic_photon.models.mpt_mup import (
        MPT_MUP_CONFIGS,
        ComposerMPTMuPCausalLM,
        MPTMuPModelArgs,
        TitanComposerMPTMuP,
    )

__all__ = ["MPT_MUP_CONFIGS", "ComposerMPTMuPCausalLM", "MPTMuPModelArgs", "TitanComposerMPTMuP"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from mosaic_photon.models import mpt_mup

        return getattr(mpt_mup, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
