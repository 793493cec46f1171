"""MPT checkpoints of other programs: Hugging Face folders and llm-foundry's `.pt` files, read and compared."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mosaic_photon.errors import ConfigError
from mosaic_photon.models.mpt_mup.architecture import check_config, is_without_multipliers
from mosaic_photon.models.mpt_mup.args import MPTMuPModelArgs, logit_scale
from mosaic_photon.models.mpt_mup.state_dict_adapter import from_foundry_name
from mosaic_photon.mup import table as rules

QKV = ("Wq", "Wk", "Wv")


def read_checkpoint(path: str | Path, args: MPTMuPModelArgs, unfold: bool = False) -> dict[str, Tensor]:
    """Weights for `TitanComposerMPTMuP(args)` from a Hugging Face or llm-foundry MPT checkpoint, on the CPU.

    Args:
        path: a folder with safetensors or pytorch_model*.bin files, or a file: .safetensors, .bin or Composer's .pt.
        unfold: where the checkpoint's config has no multipliers and the model has, divide the weights by them, so that
            the model computes what the checkpoint's does. Else a checkpoint without them is another architecture.

    Raises:
        ConfigError: no such checkpoint, or one of another architecture or size.
    """
    state = match_qkv(named_tensors(path, weight_files(Path(path))), args, bool(args.attn_config["fused_qkv"]))
    unfold = unfold and is_without_multipliers(path)
    if unfold:
        state = unfolded(state, args)
    check_state(path, state, args, unfold)
    return state


def multiplier(name: str, args: MPTMuPModelArgs) -> float:
    """What the model multiplies the output of a layer by, which may as well be in the weight `name` of that layer."""
    if ".attn.out_proj." in name or ".ffn.down_proj." in name:
        return rules.residual_multiplier(args.parametrization)
    if name.startswith("tok_embeddings.w"):
        return rules.input_multiplier(args.parametrization)
    return logit_scale(args) if name.startswith("output.") else 1.0


def unfolded(state: Mapping[str, Tensor], args: MPTMuPModelArgs) -> dict[str, Tensor]:
    """The weights divided by the multipliers; those of a tied head and its embedding may differ then."""
    head, embedding = "output.lm_head.weight", "tok_embeddings.wte.weight"
    tied = {head: state[embedding]} if args.tie_word_embeddings and head not in state and embedding in state else {}
    return {
        name: tensor if (factor := multiplier(name, args)) == 1.0 else tensor / factor
        for name, tensor in {**state, **tied}.items()
    }


def check_folder(path: str | Path, args: MPTMuPModelArgs) -> None:
    """Compare a safetensors folder that TorchTitan is to load with the model; the weights are not read.

    Raises:
        ConfigError: no safetensors, another architecture, size or layout of the projections.
    """
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"{path}: no safetensors here; of another program's checkpoint `mosaic-photon import` makes one to begin "
            "from, with initial_load_in_hf = false."
        )
    state = named_tensors(path, files)
    fused = any("Wqkv" in name for name in state)
    if fused != args.attn_config["fused_qkv"] and any(".attn." in name for name in state):
        raise ConfigError(
            f"{path}: its projections are {'fused' if fused else 'split'}, unlike the model's (attn_config.fused_qkv); "
            "of such a folder `mosaic-photon import` makes a checkpoint to begin from, with initial_load_in_hf = false."
        )
    check_state(path, state, args)


def named_tensors(path: str | Path, files: list[Path]) -> dict[str, Tensor]:
    """The checkpoint's tensors, memory-mapped, under the TorchTitan model's names; without buffers."""
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return {_our_name(path, name): tensor for name, tensor in found.items() if "rotary" not in name}


def check_state(path: str | Path, state: dict[str, Tensor], args: MPTMuPModelArgs, unfolded: bool = False) -> None:
    """Compare weights and the config beside them with the model, and drop a tied head's second copy.

    Args:
        unfolded: the weights have been divided by the model's multipliers, which rounds where they are no powers of 2.

    Raises:
        ConfigError: another architecture or size, or a head of its own where the model's is tied.
    """
    if args.tie_word_embeddings:
        head = state.pop("output.lm_head.weight", None)  # transformers saves a tied head twice
        embedding = state.get("tok_embeddings.wte.weight")
        rounding = 4 * torch.finfo(head.dtype).eps if unfolded and head is not None else 0.0
        if head is not None and embedding is not None and not torch.allclose(head, embedding, rtol=rounding, atol=0):
            raise ConfigError(
                f"{path}: its head is not tied to the embedding; set [model.overrides] tie_word_embeddings = false."
            )
    check_shapes(str(path), {name: tuple(tensor.shape) for name, tensor in state.items()}, args)
    check_config(path, args, multipliers=not unfolded)


def _our_name(where: str | Path, name: str) -> str:
    try:
        return from_foundry_name(name)
    except KeyError:
        raise ConfigError(f"{where}: {name!r} is no parameter of an MPT; is this another model?") from None


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights, safetensors before pickles."""
    if path.is_file():
        return [path]
    for pattern in ("*.safetensors", "pytorch_model*.bin", "*.pt"):
        files = sorted(path.glob(pattern)) if path.is_dir() else []
        if files:
            return files
    raise ConfigError(f"{path}: no checkpoint here; expected *.safetensors, pytorch_model*.bin or Composer's *.pt.")


def load_file(file: Path) -> dict[str, Tensor]:
    """Tensors of one file, memory-mapped. Pickles are read with `weights_only`.

    Raises:
        ConfigError: it is damaged, or holds something else.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as handle:
                return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (no mapping)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # both libraries raise several kinds for what is no checkpoint or not only weights
        raise ConfigError(f"{file}: cannot be read as a checkpoint of tensors: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: cannot be read as a checkpoint of tensors: it holds a {type(content).__name__}.")
    if isinstance(content.get("state"), dict):  # Composer
        content = content["state"].get("model", {})
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def match_qkv(state: dict[str, Tensor], args: MPTMuPModelArgs, fused: bool) -> dict[str, Tensor]:
    """Split a fused Wqkv, or fuse split ones."""
    d_head = args.d_model // args.n_heads
    sizes = [args.n_heads * d_head, args.kv_n_heads * d_head, args.kv_n_heads * d_head]
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        block, _, layer = stem.rpartition(".")
        if layer == "Wqkv" and not fused and tensor.size(0) == sum(sizes):
            out |= {f"{block}.{part}.{kind}": rows for part, rows in zip(QKV, tensor.split(sizes), strict=True)}
        elif layer in QKV and fused:
            parts = [state.get(f"{block}.{part}.{kind}") for part in QKV]
            if all(part is not None for part in parts):
                out[f"{block}.Wqkv.{kind}"] = torch.cat([part for part in parts if part is not None])
        else:
            out[name] = tensor
    return out


def check_shapes(where: str, shapes: Mapping[str, tuple[int, ...]], args: MPTMuPModelArgs) -> None:
    """Compare names and shapes with the model's, built on meta.

    Raises:
        ConfigError: naming the first few differences.
    """
    from mosaic_photon.models.mpt_mup.model import TitanComposerMPTMuP

    with torch.device("meta"):
        expected = {n: tuple(p.shape) for n, p in TitanComposerMPTMuP(args).named_parameters()}
    problems = [f"{n} is missing" for n in expected if n not in shapes]
    problems += [f"{n} is not in the model" for n in shapes if n not in expected]
    problems += [
        f"{n} is {list(shapes[n])}, the model has {list(expected[n])}"
        for n in expected
        if n in shapes and shapes[n] != expected[n]
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError(f"{where}: not a checkpoint of this architecture: {'; '.join(problems[:3])}{more}.")
