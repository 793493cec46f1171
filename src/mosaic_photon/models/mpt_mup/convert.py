"""Convert MPT checkpoints offline.

python -m mosaic_photon.models.mpt_mup.convert import CHECKPOINT OUT --job JOB.toml
    Hugging Face folder or llm-foundry .pt -> safetensors in the job's layout, for TorchTitan's
    `[checkpoint] initial_load_path = OUT, initial_load_in_hf = true`.
python -m mosaic_photon.models.mpt_mup.convert export CHECKPOINT OUT --job JOB.toml
    TorchTitan checkpoint (outputs/checkpoint/step-N) -> a folder that `transformers` loads, tokenizer included.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from mosaic_photon.checkpoints import description
from mosaic_photon.errors import ConfigError
from mosaic_photon.models.mpt_mup import hf
from mosaic_photon.models.mpt_mup.args import MPTMuPModelArgs
from mosaic_photon.models.mpt_mup.state_dict_adapter import to_foundry_name


def job_model(path: str) -> tuple[Any, MPTMuPModelArgs]:
    """The job and its model args, `[model.overrides]` and `[mup]` applied."""
    from mosaic_photon.train_spec import load_job_model

    job, args = load_job_model(path)
    if not isinstance(args, MPTMuPModelArgs):
        raise ConfigError(f"{path}: model.name is {job.model.name}; conversion knows mpt_mup_mosaic.")
    args.update_from_config(job)
    return job, args


def read_titan(path: str, args: MPTMuPModelArgs) -> dict[str, Tensor]:
    """The model's whole tensors from a TorchTitan checkpoint folder, saved by any number of ranks."""
    from mosaic_photon.models.mpt_mup.model import TitanComposerMPTMuP

    if not (Path(path) / ".metadata").is_file():
        raise ConfigError(f"{path}: no TorchTitan checkpoint here (no .metadata); name a step-N folder.")
    with torch.device("meta"):
        parameters = TitanComposerMPTMuP(args).named_parameters()
    state = {name: torch.empty(p.shape, dtype=p.dtype) for name, p in parameters}
    reader = FileSystemReader(path)
    saved = reader.read_metadata().state_dict_metadata
    tensors = {name: meta for name, meta in saved.items() if isinstance(meta, TensorStorageMetadata)}
    shapes = {name: tuple(tensors[name].size) for name in state if name in tensors}
    hf.check_shapes(path, shapes, args)
    load(state, storage_reader=reader, no_dist=True)
    return state


def check_function(path: str, job: Any, args: MPTMuPModelArgs) -> None:
    """The checkpoint's model must compute what the job's does: what is exported is the job's."""
    lines = description.changes(path, args)
    if lines and not job.mosaic.allow_model_change:
        listed = "\n  ".join(lines)
        raise ConfigError(
            f"{path} is of another model than the job's:\n  {listed}\nRestore the job's [model.overrides] and [mup], "
            "or export its weights as the other function with [mosaic] allow_model_change = true."
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("direction", choices=("import", "export"))
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--job", required=True, metavar="JOB.toml", help="job config that says which model this is")
    options = parser.parse_args(argv)
    try:
        job, args = job_model(options.job)
        if options.direction == "export":
            state = read_titan(options.checkpoint, args)
            check_function(options.checkpoint, job, args)
            hf.export(state, args, options.out, tokenizer=job.model.hf_assets_path)
        else:
            state = hf.read_checkpoint(options.checkpoint, args)
            Path(options.out).mkdir(parents=True, exist_ok=True)
            named = {to_foundry_name(name): tensor.contiguous() for name, tensor in state.items()}
            save_file(named, Path(options.out) / "model.safetensors", metadata={"format": "pt"})
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
