"""What is to be saved at the end in Hugging Face's format can be read again, or the job does not begin."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import jobs
from mosaic_photon.checkpoints.checks import check_checkpoint
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.load import load_job
from mosaic_photon.titan.hf_files import files_for
from mosaic_photon.train_spec import facts_of, spec_of_job

SAVE = ("--checkpoint.enable=true", "--checkpoint.last_save_model_only=true", "--checkpoint.last_save_in_hf=true")
BLOCK = ("input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
BLOCK += tuple(f"self_attn.{name}_proj" for name in "qkvo")


def tokenizer_folder(folder: Path, layers: int, parts: tuple[str, ...] = BLOCK) -> Path:
    """A tokenizer as a whole model download leaves it: with the index of that model's two files."""
    shutil.copytree(jobs.TOKENIZER, folder)
    index = {"model.embed_tokens.weight": 1, "model.norm.weight": 2, "lm_head.weight": 2}
    index |= {f"model.layers.{n}.{part}.weight": 1 + 2 * n // layers for n in range(layers) for part in parts}
    names = {name: f"model-0000{number}-of-00002.safetensors" for name, number in index.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def job(folder: Path, data: Path, tokenizer: Path, model: str = "llama3_mosaic") -> list[str]:
    text = jobs.JOB.replace('"{tokenizer}"', f'"{tokenizer}"').replace("llama3_mosaic", model)
    if model == "qwen3_mosaic":
        text = text.replace("dim = 64\nn_layers = 2\nn_heads = 4\n", "n_layers = 2\n")
    return jobs.write_job(folder, data, text)


def leave_half_a_save(folder: Path) -> None:
    """What a kill leaves of a last save on more ranks than there are now, into other files."""
    (folder / "sharded").mkdir(parents=True)
    (folder / "sharded/shard-00003-model-00001-of-00001.safetensors").write_bytes(b"half")
    (folder / "model-00003-of-00009.safetensors").write_bytes(b"half")


@pytest.mark.parametrize(
    ("model", "layers", "files"),
    [
        ("llama3_mosaic", 2, 2),  # its own
        ("llama3_mosaic", 4, 2),  # of a deeper model
        ("llama3_mosaic", 1, 1),  # of a shallower model: it does not say where all is to go
        ("qwen3_mosaic", 2, 2),  # with a head, which is tied here
    ],
)
def test_every_file_can_be_read(model: str, layers: int, files: int, tmp_path: Path, prepared_data: Path) -> None:
    parts = (*BLOCK, "self_attn.q_norm", "self_attn.k_norm") if model == "qwen3_mosaic" else BLOCK
    arguments = job(tmp_path, prepared_data, tokenizer_folder(tmp_path / "hf", layers, parts), model)
    saved = tmp_path / "out/checkpoint/step-1"
    if layers != 2:
        leave_half_a_save(saved)
    assert jobs.run_here(arguments, *SAVE, "--training.steps=1") == 0
    tensors = {name: tensor for path in saved.glob("*.safetensors") for name, tensor in load_file(path).items()}
    head = {"lm_head.weight"} if model == "llama3_mosaic" else set()
    blocks = {f"model.layers.{n}.{part}.weight" for n in range(2) for part in parts}
    assert tensors.keys() == blocks | {"model.embed_tokens.weight", "model.norm.weight"} | head
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    index = json.loads((saved / "model.safetensors.index.json").read_text())["weight_map"]
    assert {path.name for path in saved.glob("*.safetensors")} == set(index.values())
    assert len(set(index.values())) == files


def test_files_are_numbered_without_gaps() -> None:
    assert files_for(["a", "b", "c"], {"a": 1, "b": 4, "c": 1, "d": 3}) == {"a": 1, "b": 2, "c": 1}
    assert files_for(["a", "b"], {"a": 1}) is None


def check(tmp_path: Path, tokenizer: Path, *flags: str, model: str = "llama3_mosaic") -> None:
    text = jobs.JOB.replace('"{tokenizer}"', f'"{tokenizer}"').replace("llama3_mosaic", model)
    if model != "llama3_mosaic":
        text = text.replace("dim = 64\nn_layers = 2\nn_heads = 4\n", "")
    _, config, _, data = jobs.write_job(tmp_path, tmp_path, text)
    loaded = load_job(config, data, list(flags))
    check_checkpoint(loaded, facts_of(loaded, spec_of_job(loaded)))


def test_what_titan_would_leave_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"leaves \d+ parameters of llama4_mosaic debugmodel out .*feed_forward"):
        check(tmp_path, jobs.TOKENIZER, *SAVE, model="llama4_mosaic")
    with pytest.raises(ConfigError, match="cannot begin from one in Hugging Face's format"):
        check(tmp_path, jobs.TOKENIZER, *SAVE, "--checkpoint.create_seed_checkpoint=true")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not an index of weights"),
        ("{}", "is not an index of weights"),
        ('{"weight_map": {"a": "model.safetensors"}}', r"names the file 'model\.safetensors'"),
    ],
)
def test_an_index_that_titan_cannot_read_is_refused(text: str, says: str, tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "hf", 2)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ConfigError, match=says):
        check(tmp_path, folder)
