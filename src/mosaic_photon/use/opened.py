"""A checkpoint, or a folder that was exported, as a model of transformers in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mosaic_photon.errors import ConfigError, ask_upstream
from mosaic_photon.files import read_json
from mosaic_photon.job.documents import masks_by_end_token, separators, uses_sequence_id
from mosaic_photon.titan.config import TORCH_DTYPE_MAP
from mosaic_photon.titan.tools import device_type
from mosaic_photon.tokenizers import transformers_tokenizer, vocabulary_size
from mosaic_photon.use.checkpoint import JobModel, between_documents, find_checkpoint
from mosaic_photon.use.export import in_memory

CONFIG = "config.json"


@dataclass(frozen=True)
class Opened:
    """What a command works with."""

    path: str
    """The checkpoint, or the exported folder."""
    job: JobModel
    model: Any
    """Of transformers, for inference, on this process's device."""
    tokenizer: Any
    """Of transformers."""

    def logits(self, tokens: Tensor) -> Tensor:
        """[B, S, V] of tokens int64 [B, S], computed in the dtype that one process of the job computes in."""
        tokens = tokens.to(self.model.device)
        dtype = TORCH_DTYPE_MAP[self.job.job.training.mixed_precision_param]
        with torch.autocast(self.model.device.type, dtype, enabled=dtype != torch.float32):
            found: Tensor = self.model(tokens, use_cache=False, **self._documents(tokens)).logits
        return found

    def _documents(self, tokens: Tensor) -> dict[str, Tensor]:
        """What keeps attention within documents, where the job's model does."""
        args = self.job.args
        if not (masks_by_end_token(args) or uses_sequence_id(args)):
            return {}
        ids = document_ids(tokens, separators(self.job.job) or between_documents(self.job.job.model.hf_assets_path))
        if self.model.config.model_type == "mpt_mup":
            return {"sequence_id": ids}
        if self.model.config.model_type == "mpt":
            raise ConfigError(
                "the job keeps attention within documents, and transformers' own MPT, whose form this one has, cannot."
            )
        seen = (ids[:, :, None] == ids[:, None, :]).tril()[:, None]
        return {"attention_mask": torch.where(seen, 0.0, torch.finfo(self.model.dtype).min)}


def open_in_transformers(job: JobModel, path: str | None = None) -> Opened:
    """The model in a checkpoint or an exported folder, with its tokenizer.

    Args:
        path: one of the two; None: the job's newest checkpoint.

    Raises:
        ConfigError: there is none, it is of another model than the job's, or the tokenizer is not the model's.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # a rope that is stretched beyond the positions, and the like, is the job's affair
    if path is not None and os.path.isfile(os.path.join(path, CONFIG)):
        model, tokenizer = exported(job, path)
    else:
        path, tokenizer = find_checkpoint(job, path), transformers_tokenizer(job.job.model.hf_assets_path)
        model = in_memory(job, path)
    return Opened(path, job, model.requires_grad_(False).to(device_type), tokenizer)


def document_ids(tokens: Tensor, between: Mapping[str, int]) -> Tensor:
    """The number of each token's document in its row, [B, S].

    Args:
        between: `eos_token_id`, which belongs to the document that it ends, or else `bos_token_id`, to that it begins.
    """
    if "eos_token_id" in between:
        ends = tokens == between["eos_token_id"]
        return torch.nn.functional.pad(ends[:, :-1], (1, 0)).cumsum(1)
    return (tokens == between["bos_token_id"]).cumsum(1)


def exported(job: JobModel, path: str) -> tuple[Any, Any]:
    """The model in an exported folder, and its tokenizer, which must be the job's: data are read with the job's."""
    if read_json(Path(path) / CONFIG, "export it again").get("model_type") == "mpt_mup":
        register_own()
    from transformers import AutoModelForCausalLM

    folder = job.job.model.hf_assets_path
    tokenizer = transformers_tokenizer(folder)
    if os.path.isfile(os.path.join(path, "tokenizer.json")):
        own = transformers_tokenizer(path)
        if own.get_vocab() != tokenizer.get_vocab():
            raise ConfigError(
                f"the tokenizer in {path} has another vocabulary than the job's in {folder}: name the right one in "
                "model.hf_assets_path."
            )
        tokenizer = own
    load, dtype = AutoModelForCausalLM.from_pretrained, TORCH_DTYPE_MAP[job.job.training.dtype]
    model = ask_upstream(f"{path} is no folder of transformers", (OSError, ValueError), load, path, torch_dtype=dtype)
    if (tokens := vocabulary_size(tokenizer)) > model.config.vocab_size:
        raise ConfigError(
            f"{path} has a vocabulary of {model.config.vocab_size} tokens, and the tokenizer in {folder} {tokens}: it "
            "is another model's; name the right one in model.hf_assets_path."
        )
    return model, tokenizer


def register_own() -> None:
    """Let transformers know the MPT of this package, so that no code of the folder is run."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from mosaic_photon.models.mpt_mup.foundry import MPTMuPConfig, MPTMuPForCausalLM

    AutoConfig.register(MPTMuPConfig.model_type, MPTMuPConfig, exist_ok=True)
    AutoModelForCausalLM.register(MPTMuPConfig, MPTMuPForCausalLM, exist_ok=True)
