"""What is exported gives the trained model's logits in transformers' own classes, and comes back as it was."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mosaic_photon.cli import main
from mosaic_photon.errors import ConfigError
from mosaic_photon.titan.releases import installed
from mosaic_photon.use import export as exporting
from mosaic_photon.use.checkpoint import job_model
from mosaic_photon.use.formats import format_of
from mosaic_photon.use.weights import Weights
from use import trained

MUP = """
[mup]
enabled = true
base_width = {width}
base_depth = {depth}
input_multiplier = {given}
output_multiplier = {given}
attention_scale = {attention}
"""
POWERS_OF_TWO = MUP.format(width=16, depth=1, given=4.0, attention="true")
OTHERS = MUP.format(width=20, depth=3, given=0.3, attention="false")
SCALED = "rope_theta = 1000\nrope_scaling_args = {original_max_position_embeddings = 16}\n"
ALIBI = trained.MPT + "no_bias = true\nnorm_eps = 1e-3\nattn_config.alibi = true\n"
CASES: dict[str, tuple[Any, ...]] = {
    "llama3": ("LlamaForCausalLM", "llama3", trained.SMALL + SCALED + "n_kv_heads = 2\n"),
    "llama3, muP": ("LlamaForCausalLM", "llama3", trained.SMALL + SCALED, POWERS_OF_TWO),
    "llama3, muP, no powers of 2": ("LlamaForCausalLM", "llama3", trained.SMALL, OTHERS),
    "qwen3, tied": ("Qwen3ForCausalLM", "qwen3", trained.QWEN3),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", trained.QWEN3 + "enable_weight_tying = false\n"),
    "qwen3, experts": ("Qwen3MoeForCausalLM", "qwen3", trained.QWEN3_MOE, "", "debugmodel_moe"),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "deepseek_v3", trained.DEEPSEEK_V3),
    "deepseek_v3, stretched": ("DeepseekV3ForCausalLM", "deepseek_v3", trained.STRETCHED),
    "mpt": ("MptForCausalLM", "mpt_mup", ALIBI),
    "mpt, split": ("MptForCausalLM", "mpt_mup", ALIBI + "attn_config.fused_qkv = false\n"),
    "mpt, muP": ("MptForCausalLM", "mpt_mup", ALIBI, POWERS_OF_TWO),
    "mpt, muP, no powers of 2": ("MptForCausalLM", "mpt_mup", ALIBI, OTHERS),
    "mpt, muP, untied": ("MptForCausalLM", "mpt_mup", ALIBI + "tie_word_embeddings = false\n", POWERS_OF_TWO),
    "mpt, learned positions": ("MPTMuPForCausalLM", "mpt_mup", trained.MPT, OTHERS),
}


@pytest.mark.parametrize("case", CASES)
def test_exported_and_imported(case: str, tmp_path: Path) -> None:
    architecture, *job = CASES[case]
    model, drawn, checkpoint = trained.saved(tmp_path, *job)
    out, back = tmp_path / "hf", tmp_path / "back"
    assert main(["export", str(checkpoint), str(out), "--job", model.path]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(out, trust_remote_code="MuP" in architecture).eval()
    assert type(theirs).__name__ == architecture
    with torch.no_grad():
        expected, given = trained.logits(drawn), theirs(trained.TOKENS).logits
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(exporting.in_memory(model, str(checkpoint))(trained.TOKENS).logits, given)

    assert main(["import", str(out), str(back), "--job", model.path]) == 0
    first, second = Weights(str(checkpoint)), Weights(str(back))
    assert first.stored.keys() == second.stored.keys()
    if "no powers" not in case or "MuP" in architecture:
        assert [name for name in first.stored if not torch.equal(first.read(name), second.read(name))] == []
    torch.testing.assert_close(trained.logits(trained.opened(model, str(back))), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The job of a Llama 3, a checkpoint of it, and what is exported of that in several files."""
    folder = tmp_path_factory.mktemp("llama")
    model, _, checkpoint = trained.saved(folder, "llama3", trained.SMALL + SCALED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "BYTES_OF_FILE", 300_000)
        assert main(["export", str(checkpoint.parent), str(folder / "hf"), "--job", model.path]) == 0
    return model.path, checkpoint, folder / "hf"


def test_several_files_have_an_index(llama: tuple[str, Path, Path], tmp_path: Path) -> None:
    job, checkpoint, folder = llama
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = {path.name for path in folder.glob("*.safetensors")}
    assert set(places.values()) == files == {f"model-{number:05}-of-00004.safetensors" for number in (1, 2, 3, 4)}
    assert all(name in load_file(folder / file) for name, file in places.items())
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id == theirs.generation_config.eos_token_id == 1
    assert theirs.generate(**tokenizer("def", return_tensors="pt"), max_new_tokens=3, do_sample=False).shape[1] >= 2

    assert main(["export", str(checkpoint), str(tmp_path / "half"), "--job", job, "--dtype", "bfloat16"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half", torch_dtype="auto").dtype == torch.bfloat16
    assert main(["import", str(tmp_path / "half"), str(tmp_path / "back"), "--job", job]) == 0
    weights = Weights(str(tmp_path / "back"))
    assert torch.equal(weights.read("output.weight").bfloat16(), theirs.lm_head.weight.bfloat16())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("rope_theta = 500", r"rope_theta is 1000.0 in it and 500.0 in the job \(\[model.overrides\] rope_theta\)"),
        (
            "rope_scaling_args.scaling_factor = 1.0",
            "rope_scaling is {'rope_type': 'llama3'.* in it and None in",
        ),
        ("norm_eps = 1e-6", "rms_norm_eps is 1e-05 in it and 1e-06 in the job"),
        ("n_heads = 8", "num_attention_heads is 4 in it and 8 in the job"),
        ("dim = 32", r"hidden_size is 64 in it and 32 in the job\n.*model.embed_tokens.weight is \[2048, 64\] in it"),
        ("vocab_size = 2049", "vocab_size is 2048 in it and 2049 in the job"),
        ("vocab_size = 2000", "the tokenizer in .* has 2,048 tokens, more than the 2,000 of llama3_mosaic debugmodel"),
    ],
)
def test_an_import_of_another_model_is_refused(
    overrides: str, says: str, llama: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = dict(line.split(" = ", 1) for line in (trained.SMALL + SCALED).splitlines())
    table, _, key = overrides.partition(" = ")[0].partition(".")
    settings[table] = "{scaling_factor = 1.0}" if key else overrides.partition(" = ")[2]
    job = trained.write_job(tmp_path, "llama3", "".join(f"{name} = {value}\n" for name, value in settings.items()))
    assert main(["import", str(llama[2]), str(tmp_path / "out"), "--job", str(job)]) == 1
    assert re.search(says, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "out").is_dir() or not list((tmp_path / "out").iterdir())


def test_folders_that_do_not_fit_are_refused(
    llama: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, checkpoint, folder = llama
    other = shutil.copytree(folder, tmp_path / "other tokenizer")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    qwen = shutil.copytree(folder, tmp_path / "qwen")
    config = json.loads((qwen / "config.json").read_text())
    (qwen / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("config.json"))
    cut = shutil.copytree(folder, tmp_path / "cut")
    file = cut / "model-00002-of-00004.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for given, out, says in [
        (other, "out", "its tokenizer is another than the job's: '"),
        (qwen, "out", "model_type is 'qwen3' in it and 'llama' in the job"),
        (bare, "out", "there is no config.json in it"),
        (cut, "out", "cannot be read"),
        (tmp_path, "out", "there are no .safetensors files in it"),
        (tmp_path / "absent", "out", "absent': there is no such folder"),
        (folder, "full", "is there already; name a folder that is not"),
    ]:
        assert main(["import", str(given), str(tmp_path / out), "--job", job]) == 1
        assert says in capsys.readouterr().err
    assert main(["export", str(folder), str(tmp_path / "out"), "--job", job]) == 1
    assert "holds safetensors, not a checkpoint of a run" in capsys.readouterr().err
    assert main(["export", str(checkpoint), str(tmp_path / "full"), "--job", job]) == 1
    assert "is there already" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["export", "import"])
def test_a_full_disk_leaves_nothing(
    command: str, llama: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, checkpoint, folder = llama
    given = str(checkpoint if command == "export" else folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        assert main([command, given, str(tmp_path / "out"), "--job", job]) == 1
    assert re.search(r"takes .* .iB, and .* has 1000 B free", capsys.readouterr().err)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, old[1]))  # the disk fills on the way
    try:
        assert main([command, given, str(tmp_path / "out"), "--job", job]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "cannot be written: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def words(command: str, llama: tuple[str, Path, Path], out: Path) -> list[str]:
    job, checkpoint, folder = llama
    if command == "average":
        return ["average", str(checkpoint), "--out", str(out)]
    return [command, str(checkpoint if command == "export" else folder), str(out), "--job", job]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["export", "import", "average"])
def test_a_stop_on_the_way_leaves_nothing(
    command: str,
    number: signal.Signals,
    llama: tuple[str, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Slurm's SIGTERM, a terminal's Ctrl-C, when a file has been written; the folder above OUT was not there either."""
    module, name = (exporting, "save_file") if command == "export" else (torch, "save")
    write = getattr(module, name)

    def stopped(*given: Any, **more: Any) -> None:
        write(*given, **more)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(module, name, stopped)
    before = signal.signal(number, lambda *_: None)  # so that a stop that nobody heeds does not end the tests
    try:
        assert main(words(command, llama, tmp_path / "made/out")) == 128 + number
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == f"\nmosaic-photon {command}: stopped\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["export", "import", "average"])
def test_the_current_folder_is_there_already(
    command: str,
    llama: tuple[str, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where it is empty: another would take its place, and the shell stand in one that is gone."""
    monkeypatch.chdir(tmp_path)
    assert main(words(command, llama, Path("."))) == 1
    assert "'.' is there already; name a folder that is not" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (
            ("deepseek_v3", trained.SMALL),
            "by sigmoid (moe_args.score_func is 'softmax'); its queries",
        ),
        (("qwen3", trained.QWEN3 + "qk_norm = false\n"), "it always has norms of queries and keys"),
        pytest.param(
            ("gpt_oss", "n_layers = 2\n"),
            "gpt_oss_mosaic has no form in transformers here; these have: deep",
            marks=pytest.mark.skipif(installed().folder == "v03", reason="the model is not there"),
        ),
    ],
)
def test_what_transformers_cannot_do_is_refused(job: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        format_of(job_model(str(trained.write_job(tmp_path, *job))))
    assert says in str(error.value)


def test_a_bias_that_chooses_experts_is_not_lost(tmp_path: Path) -> None:
    model = job_model(str(trained.write_job(tmp_path, "qwen3", trained.QWEN3_MOE, flavor="debugmodel_moe")))
    drawn = trained.write_checkpoint(tmp_path / "step-1", model).state_dict()
    drawn["layers.1.moe.expert_bias"][0] = 0.001
    dcp.save(drawn, checkpoint_id=tmp_path / "step-2", no_dist=True)
    with pytest.raises(ConfigError, match=r"layers.1.moe.expert_bias is not 0, and transformers' qwen3_moe"):
        exporting.export(model, str(tmp_path / "step-2"), str(tmp_path / "out"))
