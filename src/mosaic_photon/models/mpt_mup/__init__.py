"""llm-foundry's MPT with muP and CompleteP, for TorchTitan (`model`) and for llm-foundry and Composer (`foundry`)."""

from typing import TYPE_CHECKING

from mosaic_photon.names import lazy_names

if TYPE_CHECKING:
    from mosaic_photon.models.mpt_mup.args import MPTMuPModelArgs
    from mosaic_photon.models.mpt_mup.flavors import MPT_MUP_CONFIGS
    from mosaic_photon.models.mpt_mup.foundry import ComposerMPTMuPCausalLM
    from mosaic_photon.models.mpt_mup.model import TitanComposerMPTMuP
    from mosaic_photon.models.mpt_mup.parallelize import parallelize_mpt, pipeline_mpt
    from mosaic_photon.models.mpt_mup.state_dict_adapter import MPTStateDictAdapter

__all__ = [
    "MPT_MUP_CONFIGS",
    "ComposerMPTMuPCausalLM",
    "MPTMuPModelArgs",
    "MPTStateDictAdapter",
    "TitanComposerMPTMuP",
    "parallelize_mpt",
    "pipeline_mpt",
]
__getattr__ = lazy_names(
    __name__,
    {
        "MPTMuPModelArgs": "args",
        "MPT_MUP_CONFIGS": "flavors",
        "ComposerMPTMuPCausalLM": "foundry",
        "TitanComposerMPTMuP": "model",
        "parallelize_mpt": "parallelize",
        "pipeline_mpt": "parallelize",
        "MPTStateDictAdapter": "state_dict_adapter",
    },
)
