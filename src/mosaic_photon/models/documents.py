"""`[mosaic] separate_documents`: the settings by which each model keeps attention within documents."""

import dataclasses
from typing import Any

from mosaic_photon import titan
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.documents import separators
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.names import dotted
from mosaic_photon.titan.spec import TrainSpec


def separate_documents(spec: TrainSpec, job: MosaicJobConfig) -> None:
    """Write them into the job's flavor, where the job asks for it.

    TorchTitan's models rotate their positions, which count alike within a document wherever it begins, as an MPT's do
    unless it learns them.

    Raises:
        ConfigError: the data config names no token between documents, or one that the release does not look for; an
            override says the contrary; or the model cannot do it.
    """
    if not job.mosaic.separate_documents:
        return
    asked, args = "mosaic.separate_documents = true", spec.model_args[job.model.flavor]
    given, data_is_read = separators(job), bool(job.mosaic.dataloader)  # commands on checkpoints read none
    if data_is_read and not given:
        raise ConfigError(
            f"{asked}, but {job.mosaic.config or 'the data config'} does not say which token is between documents: set "
            "eos_token_id or bos_token_id in its dataset."
        )
    wanted = _settings(args)
    if wanted is None:
        raise ConfigError(f"{asked}: {job.model.name} {job.model.flavor} cannot keep attention within documents.")
    if data_is_read and "attn_config" not in wanted and not given.keys() & titan.release().DOCUMENTS_BY:
        raise ConfigError(
            f"{asked}: TorchTitan 0.2.2 knows documents by the token at their end, and the data config gives "
            "bos_token_id; set eos_token_id if there is one, or train on TorchTitan 0.3."
        )
    overrides = dict(dotted(job.model.overrides))
    for name, value in dotted(wanted):
        said = overrides.get(name, value)
        if said != value and not (name == "attn_type" and said == "varlen"):
            raise ConfigError(f"{asked} needs {name} = {value!r}, and [model.overrides] sets {said!r}; leave one out.")
    spec.model_args[job.model.flavor] = dataclasses.replace(
        args,
        **{name: getattr(args, name) | value if isinstance(value, dict) else value for name, value in wanted.items()},
    )


def _settings(args: Any) -> dict[str, Any] | None:
    """Fields of the model args, for attention within documents; None if it cannot be had."""
    if hasattr(args, "attn_config"):
        return {"attn_config": {"attn_uses_sequence_id": True}}
    if not hasattr(args, "attn_mask_type"):
        return None
    if args.attn_type == "sdpa" and getattr(args, "every_n_layers_nope", None):
        return None  # with its other attention it looks at blocks of a row, which do not begin where documents do
    return {"attn_type": "varlen" if args.attn_type == "varlen" else "flex", "attn_mask_type": "block_causal"}
