"""A folder of Hugging Face's -> a checkpoint that a job begins from: what `mosaic-photon import` does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from mosaic_photon.checkpoints import description
from mosaic_photon.checkpoints.checks import as_lines
from mosaic_photon.checkpoints.contents import alone, hf_shapes
from mosaic_photon.checkpoints.identity import compare_models, shapes_of
from mosaic_photon.errors import ConfigError, ask_upstream
from mosaic_photon.job.machine_checks import fitting_tokenizer
from mosaic_photon.tokenizers import read_tokenizer
from mosaic_photon.use.checkpoint import JobModel
from mosaic_photon.use.form import Format, Tensors
from mosaic_photon.use.formats import format_of
from mosaic_photon.use.weights import check_new, new_folder

NO_PART_OF_THE_FUNCTION = {"architectures", "use_cache", "max_position_embeddings"}
BY_DEFAULT = {"rope_type": "default", "beta_fast": 32, "beta_slow": 1}
"""What a table of rope scaling leaves out."""


def bring_in(model: JobModel, folder: str, out: str) -> None:
    """Write the folder's weights as a checkpoint of the job's model alone, whole or not at all.

    The weights get the job's `training.dtype`; its `[mup]` multipliers are divided out of them, so that the job's model
    computes what the folder's does.

    Args:
        folder: config.json, safetensors, and perhaps a tokenizer; an MPT also as `read_checkpoint` takes it.
        out: a folder that is not there yet.

    Raises:
        ConfigError: no such folder; its model or tokenizer is another than the job's; `out` is there, or has no room.
    """
    if not os.path.exists(folder):
        raise ConfigError(f"HF_FOLDER {folder!r}: there is no such folder.")
    dtype = getattr(torch, model.job.training.dtype)
    needed = sum(tensor.numel() for tensor in model.meta.state_dict().values()) * dtype.itemsize
    check_new("OUT", out, needed)
    check_tokenizer(model, Path(folder))
    state = {name: tensor.to(dtype).contiguous() for name, tensor in read(model, folder).items()}
    with new_folder("OUT", out, needed) as part, alone():
        description.write(str(part), model.args)
        save(state, storage_writer=FileSystemWriter(part), no_dist=True)


def check_tokenizer(model: JobModel, folder: Path) -> None:
    """The folder's tokenizer, where it has one, must give the job's ids."""
    ours = fitting_tokenizer(model.job, model.args).get_vocab()
    if not (folder / "tokenizer.json").is_file():
        return
    theirs = read_tokenizer(str(folder), "HF_FOLDER").get_vocab()
    if theirs != ours:
        token = next(token for token in {**theirs, **ours} if theirs.get(token) != ours.get(token))
        raise ConfigError(
            f"{folder}: its tokenizer is another than the job's: {token!r} is {theirs.get(token)} in it and "
            f"{ours.get(token)} in model.hf_assets_path = {model.job.model.hf_assets_path!r}."
        )


def read(model: JobModel, folder: str) -> Tensors:
    """The folder's weights by the job's names.

    Raises:
        ConfigError: they are another model's, with what differs.
    """
    if model.job.model.name == "mpt_mup_mosaic":
        from mosaic_photon.models.mpt_mup.hf import read_checkpoint

        return read_checkpoint(folder, model.args, unfold=True)
    form = format_of(model)
    shapes = dict(hf_shapes(folder))
    if not shapes:
        raise ConfigError(f"{folder}: there are no .safetensors files in it.")
    differs = config_differences(Path(folder), form)
    if form.config["tie_word_embeddings"]:
        shapes.pop("lm_head.weight", None)
    differs += compare_models(folder, shapes, shapes_of(form.named))
    if differs:
        raise ConfigError(
            f"{folder} is of another model than the job {model.path}:\n{as_lines(differs)}\nthe job's [model] and "
            "[model.overrides] say which model it is."
        )
    assert form.from_hf is not None
    homeless = {name: torch.zeros(model.shapes[name]) for name in form.homeless}
    tensors = (item for path in sorted(Path(folder).glob("*.safetensors")) for item in load_file(path).items())
    return form.from_hf({name: tensor for name, tensor in tensors if name in shapes}) | homeless


def config_differences(folder: Path, form: Format) -> list[str]:
    """A line for each way in which the folder's config.json says another function than the job's."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: there is no config.json in it, which says what its weights compute.")
    kinds = (OSError, ValueError, KeyError, TypeError)
    refused = f"{folder}/config.json is no config that transformers knows"
    offline = {"local_files_only": True, "trust_remote_code": False}
    saved = ask_upstream(refused, kinds, AutoConfig.from_pretrained, str(folder), **offline)
    if saved.model_type != form.config["model_type"]:
        return [f"model_type is {saved.model_type!r} in it and {form.config['model_type']!r} in the job"]
    leave_out = NO_PART_OF_THE_FUNCTION
    if (form.config["rope_scaling"] or {}).get("rope_type") == "yarn":
        leave_out = leave_out - {"max_position_embeddings"}  # transformers takes the factor from it
    lines = []
    for name, ours in form.config.items():
        theirs = getattr(saved, name, None)
        if name == "rope_scaling":
            theirs, ours = _comparable(theirs, ours), _comparable(ours, ours)
        if name not in leave_out and theirs != ours:
            lines.append(f"{name} is {theirs!r} in it and {ours!r} in the job{REMEDIES.get(name, '')}")
    return lines


REMEDIES = {
    "rope_scaling": " ([model.overrides] rope_scaling_args; scaling_factor = 1 is none)",
    "rope_theta": " ([model.overrides] rope_theta)",
    "rms_norm_eps": " ([model.overrides] norm_eps)",
}


def _comparable(table: Any, wanted: Any) -> Any:
    """A table of rope scaling with what counts, in one way of writing it; None for none."""
    if not table or (table.get("rope_type") or table.get("type")) == "default":
        return None
    full = BY_DEFAULT | table | {"rope_type": table.get("rope_type") or table.get("type")}
    return {name: full.get(name) for name in (wanted or full)}


def next_step(out: str) -> str:
    """What to do with the checkpoint."""
    return f"{os.path.abspath(out)}: begin from it with [checkpoint] enable = true, initial_load_path = {out!r}"
