"""Names of the TorchTitan model's parameters in llm-foundry and Hugging Face MPT checkpoints, and back."""

from typing import Any

from mosaic_photon.models.mpt_mup.args import MPTMuPModelArgs
from mosaic_photon.titan.spec import StateDictAdapter

PREFIXES = (
    ("tok_embeddings.wte.", "transformer.wte."),
    ("tok_embeddings.wpe.", "transformer.wpe."),
    ("tok_embeddings.output.", "transformer.emb_drop."),
    ("layers.", "transformer.blocks."),
    ("norm.", "transformer.norm_f."),
    ("output.lm_head.", "lm_head."),
)


def to_foundry_name(name: str) -> str:
    """`layers.0.attn.Wqkv.weight` -> `transformer.blocks.0.attn.Wqkv.weight`.

    Raises:
        KeyError: not a parameter of this model.
    """
    for ours, theirs in PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def from_foundry_name(name: str) -> str:
    """The inverse; the prefixes of Composer's wrapper (`model.`) are removed too.

    Raises:
        KeyError: not a parameter of an MPT.
    """
    name = name.removeprefix("state.").removeprefix("model.").removeprefix("model.")
    for ours, theirs in PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise KeyError(name)


class MPTStateDictAdapter(StateDictAdapter):
    """TorchTitan's `initial_load_in_hf` and `last_save_in_hf`: names only, multipliers stay in the config."""

    def __init__(self, model_args: MPTMuPModelArgs, hf_assets_path: str | None) -> None:
        super().__init__(model_args, hf_assets_path)

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {to_foundry_name(name): value for name, value in state_dict.items()}

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        return {from_foundry_name(name): value for name, value in hf_state_dict.items()}
