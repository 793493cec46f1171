"""A checkpoint of a run -> a folder that transformers loads: config, safetensors, tokenizer.

One layer's tensors are read, folded and renamed at a time, and held until their file is full: memory is at most that of
one file and a layer.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from mosaic_photon.checkpoints.find import HF_INDEX
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.machine_checks import fitting_tokenizer
from mosaic_photon.tokenizers import special_id
from mosaic_photon.use.checkpoint import JobModel, check_weights
from mosaic_photon.use.form import Format, Tensors
from mosaic_photon.use.formats import format_of
from mosaic_photon.use.weights import Weights, new_folder

BYTES_OF_FILE = 5 * 10**9
"""As transformers has it."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def export(model: JobModel, checkpoint: str, out: str, dtype: torch.dtype | None = None) -> None:
    """Write the folder, whole or not at all.

    Args:
        checkpoint: a step-N folder of any layout.
        out: a folder that is not there yet.
        dtype: of the weights; None: as the checkpoint has them.

    Raises:
        ConfigError: the checkpoint is no whole one of the job's model; transformers has no such model; the tokenizer
            has more tokens than the model; `out` is there, or has no room.
    """
    weights, form, tokenizer = checked(model, checkpoint)
    stored = weights.stored[next(iter(model.shapes))].properties.dtype
    needed = weights.bytes * (dtype or stored).itemsize // stored.itemsize
    with new_folder("OUT", out, needed) as part:
        write_weights(part, (in_dtype(layer, dtype) for layer in layers(model, weights, form)))
        write_rest(part, form, Path(model.job.model.hf_assets_path), tokenizer, dtype or stored)


def checked(model: JobModel, checkpoint: str) -> tuple[Weights, Format, Tokenizer]:
    """The checkpoint, how transformers has the model, and its tokenizer. Raises ConfigError: as `export`."""
    weights, form = check_weights(model, checkpoint), format_of(model)
    tokenizer = fitting_tokenizer(model.job, model.args)
    check_homeless(weights, form, model)
    return weights, form, tokenizer


def in_memory(model: JobModel, checkpoint: str) -> Any:
    """What transformers would load from the exported folder, in the checkpoint's dtype, without the folder.

    Raises:
        ConfigError: as `export`.
    """
    weights, form, tokenizer = checked(model, checkpoint)
    state: Tensors = {}
    for layer in layers(model, weights, form):
        state |= in_dtype(layer, None)
    model_cls = class_of(form.config["architectures"][0])
    config = model_cls.config_class(**form.config, **special_ids(model.job.model.hf_assets_path, tokenizer))
    stored = next(iter(state.values())).dtype
    return model_cls.from_pretrained(None, config=config, state_dict=state, torch_dtype=stored)


def class_of(architecture: str) -> Any:
    """transformers' class, or this package's of the MPT."""
    if architecture == "MPTMuPForCausalLM":
        from mosaic_photon.models.mpt_mup.foundry import MPTMuPForCausalLM

        return MPTMuPForCausalLM
    import transformers

    return getattr(transformers, architecture)


def check_homeless(weights: Weights, form: Format, model: JobModel) -> None:
    """Buffers that transformers' model lacks must not count."""
    for name in form.homeless:
        if bool(weights.read(name).any()):
            raise ConfigError(
                f"{weights.folder}: {name} is not 0, and transformers' {form.config['model_type']} has no place for it:"
                f" {model.job.model.name} chooses experts by it (moe_args.load_balance_coeff)."
            )


def layers(model: JobModel, weights: Weights, form: Format) -> Iterator[Tensors]:
    """The tensors by their names in Hugging Face's format, a layer of the model at a time."""
    units: dict[str, list[str]] = {}
    for name in model.shapes:
        layer = re.match(r"layers\.\d+\.", name)
        if name not in form.homeless:
            units.setdefault(layer[0] if layer else name, []).append(name)
    for names in units.values():
        yield form.to_hf({name: weights.read(name) for name in names})


def in_dtype(layer: Tensors, dtype: torch.dtype | None) -> Tensors:
    """Whole tensors that own their memory, in this dtype."""
    return {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in layer.items()}


def write_weights(folder: Path, parts: Iterator[Tensors]) -> None:
    """Safetensors of at most BYTES_OF_FILE, unless one part is larger, and an index where there are several."""
    files: list[list[str]] = []
    held: Tensors = {}
    total = 0

    def flush() -> None:
        save_file(held, folder / f"{len(files)}.part", metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for part in parts:
        size = sum(tensor.nbytes for tensor in part.values())
        if held and sum(tensor.nbytes for tensor in held.values()) + size > BYTES_OF_FILE:
            flush()
        held |= part
        total += size
    del part
    flush()
    if len(files) == 1:
        (folder / "0.part").rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / HF_INDEX).write_text(json.dumps(index, indent=2))


def write_rest(folder: Path, form: Format, tokenizer_folder: Path, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    """Config, tokenizer, and what generation begins and stops with."""
    ids = special_ids(tokenizer_folder, tokenizer)
    config = {**form.config, **ids, "torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2))
    for name, content in form.files.items():
        (folder / name).write_bytes(content)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, folder / name)


def special_ids(folder: str | Path, tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the tokenizer's bos, eos and pad tokens; generation stops at eos by them."""
    found = {f"{role}_token_id": special_id(folder, role, tokenizer) for role in ("bos", "eos", "pad")}
    return {name: token_id for name, token_id in found.items() if token_id is not None}
