"""MPT checkpoints in and out: Hugging Face folders, llm-foundry's `.pt` files, and folders that `transformers` loads.

Export has two forms. Where transformers' own MPT has the architecture (ALiBi, no biases, multi-head, GELU), the
multipliers are folded into the weights and the folder needs transformers alone. Otherwise the folder carries the
multipliers in its config, and a stub that loads this package's model (`trust_remote_code=True`).
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from mosaic_photon.errors import ConfigError
from mosaic_photon.files import write_whole
from mosaic_photon.models.mpt_mup.architecture import check_config
from mosaic_photon.models.mpt_mup.args import MPTMuPModelArgs, logit_scale, softmax_scale
from mosaic_photon.models.mpt_mup.state_dict_adapter import from_foundry_name, to_foundry_name
from mosaic_photon.mup import table as rules
from mosaic_photon.tokenizers import special_id

STUB = "modeling_mpt_mup.py"
STUB_TEXT = '''"""Loads the MPT of mosaic-photon; needs `pip install mosaic-photon`."""

from mosaic_photon.models.mpt_mup.foundry import MPTMuPConfig as _Config
from mosaic_photon.models.mpt_mup.foundry import MPTMuPForCausalLM as _Model


class MPTMuPConfig(_Config):
    pass


class MPTMuPForCausalLM(_Model):
    config_class = MPTMuPConfig
'''
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
QKV = ("Wq", "Wk", "Wv")


def read_checkpoint(path: str | Path, args: MPTMuPModelArgs) -> dict[str, Tensor]:
    """Weights for `TitanComposerMPTMuP(args)` from a Hugging Face or llm-foundry MPT checkpoint, on the CPU.

    Args:
        path: a folder with safetensors or pytorch_model*.bin files, or a file: .safetensors, .bin or Composer's .pt.

    Raises:
        ConfigError: no such checkpoint, or one of another architecture or size.
    """
    state = match_qkv(named_tensors(path, weight_files(Path(path))), args)
    check_state(path, state, args)
    return state


def check_folder(path: str | Path, args: MPTMuPModelArgs) -> None:
    """Compare a safetensors folder that TorchTitan is to load with the model; the weights are not read.

    Raises:
        ConfigError: no safetensors, another architecture, size or layout of the projections.
    """
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"{path}: no safetensors here; make them from another checkpoint: "
            "python -m mosaic_photon.models.mpt_mup.convert import."
        )
    state = named_tensors(path, files)
    fused = any("Wqkv" in name for name in state)
    if fused != args.attn_config["fused_qkv"] and any(".attn." in name for name in state):
        raise ConfigError(
            f"{path}: its projections are {'fused' if fused else 'split'}, unlike the model's (attn_config.fused_qkv); "
            "convert it first: python -m mosaic_photon.models.mpt_mup.convert import."
        )
    check_state(path, state, args)


def named_tensors(path: str | Path, files: list[Path]) -> dict[str, Tensor]:
    """The checkpoint's tensors, memory-mapped, under the TorchTitan model's names; without buffers."""
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return {_our_name(path, name): tensor for name, tensor in found.items() if "rotary" not in name}


def check_state(path: str | Path, state: dict[str, Tensor], args: MPTMuPModelArgs) -> None:
    """Compare weights and the config beside them with the model, and drop a tied head's second copy.

    Raises:
        ConfigError: another architecture or size, or a head of its own where the model's is tied.
    """
    if args.tie_word_embeddings:
        head = state.pop("output.lm_head.weight", None)  # transformers saves a tied head twice
        embedding = state.get("tok_embeddings.wte.weight")
        if head is not None and embedding is not None and not torch.equal(head, embedding):
            raise ConfigError(
                f"{path}: its head is not tied to the embedding; set [model.overrides] tie_word_embeddings = false."
            )
    check_shapes(str(path), {name: tuple(tensor.shape) for name, tensor in state.items()}, args)
    check_config(path, args)


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
    """Tensors of one file, memory-mapped. Pickles are read with `weights_only`."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (no mapping)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises several kinds for what is no checkpoint or not only weights
        raise ConfigError(f"{file}: cannot be read as a checkpoint of tensors: {error}") from None
    if isinstance(content.get("state"), dict):  # Composer
        content = content["state"].get("model", {})
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def match_qkv(state: dict[str, Tensor], args: MPTMuPModelArgs) -> dict[str, Tensor]:
    """Split a fused Wqkv, or fuse split ones, as `attn_config.fused_qkv` asks."""
    fused = bool(args.attn_config["fused_qkv"])
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


def export(
    state: Mapping[str, Tensor], args: MPTMuPModelArgs, folder: str | Path, tokenizer: str | None = None
) -> None:
    """Write config, weights and tokenizer so that `AutoModelForCausalLM.from_pretrained(folder)` gives these logits.

    Args:
        state: whole tensors under the TorchTitan model's names.
        tokenizer: folder whose tokenizer files are copied.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    check_shapes("the state to export", {name: tuple(tensor.shape) for name, tensor in state.items()}, args)
    named = {to_foundry_name(name): tensor.detach().cpu() for name, tensor in state.items()}
    if is_native(args):
        named = fold(named, args)
        config = native_config(args, tied="lm_head.weight" not in named)
    else:
        config = carried_config(args)
        write_whole(target / STUB, STUB_TEXT.encode())
    ids = {} if tokenizer is None else special_ids(Path(tokenizer))
    dtype = str(next(iter(named.values())).dtype).removeprefix("torch.")
    write_whole(target / "config.json", json.dumps({**config, **ids, "torch_dtype": dtype}, indent=2).encode())
    write_whole(target / "generation_config.json", json.dumps(ids, indent=2).encode())
    partial = target / "model.safetensors.partial"
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, partial, metadata={"format": "pt"})
    os.replace(partial, target / "model.safetensors")
    for name in TOKENIZER_FILES:
        if tokenizer is not None and (Path(tokenizer) / name).is_file():
            shutil.copy(Path(tokenizer) / name, target / name)


def special_ids(tokenizer: Path) -> dict[str, int]:
    """Ids of the folder's bos, eos and pad tokens; generation stops at eos by them."""
    if not (tokenizer / "tokenizer.json").is_file():
        return {}
    vocabulary = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    ids = {f"{role}_token_id": special_id(tokenizer, role, vocabulary) for role in ("bos", "eos", "pad")}
    return {name: token_id for name, token_id in ids.items() if token_id is not None}


def is_native(args: MPTMuPModelArgs) -> bool:
    """Whether transformers' own MPT has this architecture, once the multipliers are folded."""
    attn = args.attn_config
    return bool(
        attn["alibi"]
        and attn["alibi_bias_max"] == 8  # transformers reads the value and does not use it
        and args.no_bias
        and attn["attn_type"] == "multihead_attention"
        and attn["fused_qkv"]
        and not (attn["qk_ln"] or attn["qk_gn"])
        and attn["attn_logit_softcapping"] is None
        and attn["sliding_window_size"] == -1
        and args.ffn_config.get("ffn_type", "mptmlp") == "mptmlp"
        and args.ffn_config.get("ffn_act_fn") is None
        and args.ffn_hidden_size == 4 * args.d_model
        and args.norm_type in ("layernorm", "low_precision_layernorm")
        and args.norm_eps == 1e-5
        and not (args.peri_norm or args.embedding_norm)
        and args.final_logit_softcapping is None
    )


def fold(named: dict[str, Tensor], args: MPTMuPModelArgs) -> dict[str, Tensor]:
    """Multiply the multipliers into the weights: branches into their last layers, input and output into the embeddings.

    A tied head whose multipliers differ becomes a head of its own.
    """
    p = args.parametrization
    branch, inner, outer = rules.residual_multiplier(p), rules.input_multiplier(p), logit_scale(args)
    out = {}
    for name, tensor in named.items():
        is_last = name.endswith(("attn.out_proj.weight", "ffn.down_proj.weight"))
        out[name] = tensor * branch if is_last and branch != 1.0 else tensor
    embedding = named["transformer.wte.weight"]
    out["transformer.wte.weight"] = embedding * inner
    if not args.tie_word_embeddings or inner != 1.0 or outer != 1.0:
        out["lm_head.weight"] = named.get("lm_head.weight", embedding) * outer
    return out


def native_config(args: MPTMuPModelArgs, tied: bool) -> dict[str, Any]:
    attn = args.attn_config
    return {
        "architectures": ["MptForCausalLM"], "model_type": "mpt", "d_model": args.d_model, "n_heads": args.n_heads,
        "n_layers": args.n_layers, "expansion_ratio": 4, "max_seq_len": args.max_seq_len,
        "vocab_size": args.vocab_size, "no_bias": True, "norm_type": "low_precision_layernorm",
        "layer_norm_epsilon": args.norm_eps, "learned_pos_emb": False, "tie_word_embeddings": tied,
        "use_cache": True,
        "attn_config": {"alibi": True, "alibi_bias_max": attn["alibi_bias_max"], "clip_qkv": attn["clip_qkv"],
                        "softmax_scale": softmax_scale(args), "attn_impl": "torch"},
    }  # fmt: skip


def carried_config(args: MPTMuPModelArgs) -> dict[str, Any]:
    module = STUB.removesuffix(".py")
    return {
        **args.foundry_config(),
        "architectures": ["MPTMuPForCausalLM"], "model_type": "mpt_mup", "use_cache": True,
        "auto_map": {"AutoConfig": f"{module}.MPTMuPConfig", "AutoModelForCausalLM": f"{module}.MPTMuPForCausalLM"},
    }  # fmt: skip
