"""Checkpoints in and out: other programs' files load, and what is exported gives the trained model's logits."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mosaic_photon.checkpoints import description
from mosaic_photon.cli import main
from mosaic_photon.errors import ConfigError
from mosaic_photon.models import MPTMuPModelArgs, TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup import hf
from mosaic_photon.models.mpt_mup.foundry import ComposerMPTMuPCausalLM
from mosaic_photon.models.mpt_mup.state_dict_adapter import MPTStateDictAdapter
from mosaic_photon.train_spec import check_safetensors
from mosaic_photon.use import export as exporting
from mosaic_photon.use.checkpoint import check_weights, job_model

SIZE = {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 2048, "max_seq_len": 32}
MUP = {
    "enabled": True, "width": 4.0, "depth": 2.0, "depth_alpha": 1.0, "attention_scale": True,
    "input_multiplier": 3.0, "output_multiplier": 5.0,
}  # fmt: skip
NATIVE = {"attn_config": {"alibi": True}, "no_bias": True}
TOKENS = torch.arange(64).view(2, 32)
TOKENIZER = "tests/assets/tokenizer"


def model(**changes) -> TitanComposerMPTMuP:
    torch.manual_seed(0)
    m = TitanComposerMPTMuP(MPTMuPModelArgs(**SIZE | changes))
    with torch.no_grad():
        for parameter in m.parameters():  # norms and biases too, so that none may be lost
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return m.eval()


def export(ours: TitanComposerMPTMuP, folder: Path) -> Path:
    """By way of a checkpoint of a job that has this model."""
    checkpoint = folder.with_name(f"{folder.name} step-1")
    dcp.save(ours.state_dict(), checkpoint_id=checkpoint, no_dist=True)
    with torch.device("meta"):
        meta = TitanComposerMPTMuP(ours.model_args)
    job = dataclasses.replace(job_model(str(write_job(folder.parent, ""))), args=ours.model_args, meta=meta)
    exporting.export(job, str(checkpoint), str(folder))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        NATIVE,
        NATIVE | {"mup": MUP},
        NATIVE | {"mup": MUP, "tie_word_embeddings": False},
        {"mup": MUP, "attn_config": {"rope": True}, "peri_norm": True, "embedding_norm": True},
        {"tie_word_embeddings": False, "ffn_config": {"ffn_type": "mptglu"}},
        {"no_bias": True, "attn_config": {"alibi": True, "alibi_bias_max": 4}},  # transformers always takes 8
    ],
    ids=["native", "native, muP, tied", "native, muP, untied", "carried, muP, norms", "carried, plain", "bias max 4"],
)
def test_exported_logits_are_the_trained_models_and_it_generates(tmp_path, changes):
    ours = model(**changes)
    out = export(ours, tmp_path / "out")

    native = changes.items() >= NATIVE.items()
    theirs = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=not native).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert theirs.config.model_type == ("mpt" if native else "mpt_mup")
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS), atol=1e-4, rtol=1e-4)
        prompt = tokenizer("def main():", return_tensors="pt")
        text = theirs.generate(**prompt, max_new_tokens=5, do_sample=False)
        greedy = prompt.input_ids
        for _ in range(5):  # with the cache as without it
            greedy = torch.cat([greedy, ours(greedy)[:, -1:].argmax(-1)], dim=1)
    assert text.tolist() == greedy.tolist()
    for config in (theirs.config, theirs.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)


def test_composer_and_hugging_face_checkpoints_load(tmp_path):
    args = MPTMuPModelArgs(**SIZE)
    theirs = ComposerMPTMuPCausalLM(**args.foundry_config())
    torch.save({"state": {"model": theirs.state_dict()}}, tmp_path / "ep0-ba1-rank0.pt")
    theirs.model.save_pretrained(tmp_path / "hf")
    for path in (tmp_path / "ep0-ba1-rank0.pt", tmp_path / "hf"):
        ours = TitanComposerMPTMuP(args)
        ours.load_state_dict(hf.read_checkpoint(path, args))
        torch.testing.assert_close(ours(TOKENS), theirs.model(TOKENS).logits, atol=1e-5, rtol=1e-5)


def test_fused_projections_are_split_and_joined(tmp_path):
    gqa = {"attn_type": "grouped_query_attention", "kv_n_heads": 2}
    fused = model(attn_config=gqa)
    split_args = MPTMuPModelArgs(**SIZE | {"attn_config": gqa | {"fused_qkv": False}})
    save_file(MPTStateDictAdapter(split_args, None).to_hf(fused.state_dict()), tmp_path / "model.safetensors")
    split = TitanComposerMPTMuP(split_args)
    split.load_state_dict(hf.read_checkpoint(tmp_path, split_args))
    torch.testing.assert_close(split(TOKENS), fused(TOKENS), atol=1e-5, rtol=1e-5)

    joined = hf.match_qkv(split.state_dict(), fused.model_args, fused=True)
    for name, tensor in fused.state_dict().items():
        torch.testing.assert_close(joined[name], tensor, msg=name)


def test_adapter_names_go_there_and_back():
    adapter, state = MPTStateDictAdapter(MPTMuPModelArgs(**SIZE), None), model(embedding_norm=True).state_dict()
    assert list(adapter.from_hf(adapter.to_hf(state))) == list(state)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"model.layers.0.self_attn.q_proj.weight": (64, 64)}, "no parameter of an MPT"),
        ({"transformer.wte.weight": (2048, 32)}, "is missing"),
        ({}, "not a checkpoint of this architecture"),
    ],
)
def test_other_architectures_are_refused(tmp_path, names, says):
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=says):
        hf.read_checkpoint(tmp_path, MPTMuPModelArgs(**SIZE))


def test_another_size_is_refused(tmp_path):
    other = model(d_model=32)
    save_file(MPTStateDictAdapter(other.model_args, None).to_hf(other.state_dict()), tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"is \[2048, 32\], the model has \[2048, 64\]"):
        hf.read_checkpoint(tmp_path, MPTMuPModelArgs(**SIZE))


def save(model: TitanComposerMPTMuP, folder, **config) -> None:
    """Weights in the model's own layout, and a config.json where one is given."""
    save_file(MPTStateDictAdapter(model.model_args, None).to_hf(model.state_dict()), folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))


def test_a_head_of_its_own_is_not_dropped_for_a_tied_model(tmp_path):
    save(model(tie_word_embeddings=False), tmp_path)
    for read in (hf.read_checkpoint, hf.check_folder):
        with pytest.raises(ConfigError, match="tie_word_embeddings = false"):
            read(tmp_path, MPTMuPModelArgs(**SIZE))
        read(tmp_path, MPTMuPModelArgs(**SIZE | {"tie_word_embeddings": False}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attn_config": {"rope": True}}, r"positions is \['alibi'\], the model has \['rope'\]"),
        ({"n_heads": 2}, "n_heads is 4, the model has 2"),
        ({"norm_type": "rmsnorm", "attn_config": {"alibi": True, "clip_qkv": 6}}, "clip_qkv is None.*norm_type is"),
        ({"mup": MUP}, "softmax scale is 0.25, .* 0.0625; residual multiplier is 1.0, .* logit scale is"),
    ],
)
@pytest.mark.parametrize("program", ["llm-foundry", "transformers"])
def test_a_folders_config_says_what_shapes_do_not(tmp_path, program, change, says):
    from llmfoundry.models.mpt import MPTConfig
    from transformers import MptConfig

    ours = model(**NATIVE)
    if program == "transformers":
        config = MptConfig(**SIZE)
    else:
        config = MPTConfig(**SIZE, no_bias=True, attn_config={"alibi": True, "attn_impl": "torch"})
    save(ours, tmp_path, **config.to_dict() | {"tie_word_embeddings": True})
    for read in (hf.read_checkpoint, hf.check_folder):
        read(tmp_path, ours.model_args)
        with pytest.raises(ConfigError, match=says):
            read(tmp_path, MPTMuPModelArgs(**SIZE | NATIVE | change))


def test_an_exported_folder_loads_again_into_the_model_that_it_holds(tmp_path):
    carried, folded = model(mup=MUP, attn_config={"rope": True}), model(mup=MUP, **NATIVE)
    for name, ours in {"carried": carried, "folded": folded}.items():
        export(ours, tmp_path / name)
    again = TitanComposerMPTMuP(carried.model_args)
    again.load_state_dict(hf.read_checkpoint(tmp_path / "carried", carried.model_args))
    torch.testing.assert_close(again(TOKENS), carried(TOKENS))

    with pytest.raises(ConfigError, match="tie_word_embeddings = false"):  # the multipliers made it a head of its own
        hf.read_checkpoint(tmp_path / "folded", folded.model_args)
    plain = NATIVE | {"tie_word_embeddings": False, "attn_config": {"alibi": True, "softmax_scale": 1 / 16}}
    again = TitanComposerMPTMuP(MPTMuPModelArgs(**SIZE | plain)).eval()
    again.load_state_dict(hf.read_checkpoint(tmp_path / "folded", again.model_args))
    torch.testing.assert_close(again(TOKENS), folded(TOKENS), atol=1e-4, rtol=1e-4)


def test_a_config_of_another_program_is_refused(tmp_path):
    for content, says in [
        ({"model_type": "llama"}, "'llama', no MPT"),
        ({"model_type": "mpt", "d_model": 7}, "no config"),
    ]:
        save(model(), tmp_path, **content)
        with pytest.raises(ConfigError, match=says):
            hf.read_checkpoint(tmp_path, MPTMuPModelArgs(**SIZE))


def test_a_jobs_initial_checkpoint_is_checked_before_anything_is_built(tmp_path):
    from mosaic_photon.job.tables import MosaicJobConfig

    ours = model()
    save(ours, tmp_path)
    job = MosaicJobConfig()
    job.job.dump_folder = str(tmp_path / "out")
    job.training.seq_len = 32
    job.checkpoint.enable = job.checkpoint.initial_load_in_hf = True
    job.checkpoint.initial_load_path = str(tmp_path)
    check_safetensors(job, MPTMuPModelArgs(**SIZE))
    for other, says in [
        ({"n_layers": 3}, "layers.2.* is missing"),
        ({"attn_config": {"fused_qkv": False}}, "of such a folder `mosaic-photon import` makes"),
    ]:
        with pytest.raises(ConfigError, match=says):
            check_safetensors(job, MPTMuPModelArgs(**SIZE | other))
    job.checkpoint.initial_load_path = str(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no safetensors here"):
        check_safetensors(job, MPTMuPModelArgs(**SIZE))
    resumes = tmp_path / "out" / job.checkpoint.folder / "step-1"
    resumes.mkdir(parents=True)
    with pytest.raises(ConfigError, match="no safetensors here"):  # half-written: the weights still count
        check_safetensors(job, MPTMuPModelArgs(**SIZE))
    (resumes / ".metadata").touch()
    check_safetensors(job, MPTMuPModelArgs(**SIZE))


def write_job(folder: Path, more: str) -> Path:
    path = folder / "job.toml"
    path.write_text(
        f'[model]\nname = "mpt_mup_mosaic"\nflavor = "debugmodel"\nhf_assets_path = "{TOKENIZER}"\n[model.overrides]\n'
        + "\n".join(f"{name} = {value}" for name, value in SIZE.items())
        + f"\n[training]\nseq_len = 32\n{more}"
    )
    return path


def test_an_export_is_of_the_model_that_was_trained(tmp_path, capsys):
    trained = model(attn_config={"attn_logit_softcapping": 30.0})
    dcp.save(trained.state_dict(), checkpoint_id=tmp_path / "in", no_dist=True)
    description.write(str(tmp_path / "in"), trained.model_args)
    command = ["export", str(tmp_path / "in"), str(tmp_path / "out"), "--job"]
    assert main([*command, str(write_job(tmp_path, ""))]) == 1
    says = "attn_config.attn_logit_softcapping is 30.0 in the checkpoint and null in the job"
    assert says in capsys.readouterr().err
    assert main([*command, str(write_job(tmp_path, "[mosaic]\nallow_model_change = true\n"))]) == 0


def test_import_makes_what_the_job_names(tmp_path):
    ours = model()
    (tmp_path / "in").mkdir()
    save(ours, tmp_path / "in")
    more = f'[checkpoint]\nenable = true\ninitial_load_path = "{tmp_path / "out"}"\n'
    job = write_job(tmp_path, more)
    assert main(["import", str(tmp_path / "in"), str(tmp_path / "out"), "--job", str(job)]) == 0
    weights = check_weights(job_model(str(job)), str(tmp_path / "out"))
    assert all(torch.equal(weights.read(name), tensor) for name, tensor in ours.state_dict().items())


def test_no_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint here"):
        hf.read_checkpoint(tmp_path, MPTMuPModelArgs(**SIZE))
    (tmp_path / "x.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match="cannot be read"):
        hf.read_checkpoint(tmp_path, MPTMuPModelArgs(**SIZE))
    torch.save(torch.ones(2), tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="it holds a Tensor"):
        hf.read_checkpoint(tmp_path, MPTMuPModelArgs(**SIZE))
    save_file({"a": torch.ones(2)}, damaged := tmp_path / "model.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for read in (hf.read_checkpoint, hf.check_folder):
        with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read"):
            read(tmp_path, MPTMuPModelArgs(**SIZE))


def test_nothing_is_lost_on_the_way(tmp_path):
    ours = model(mup=MUP)
    out = export(ours, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["mup"]["width"] == 4.0
    assert sum(t.numel() for t in load_file(out / "model.safetensors").values()) == sum(
        p.numel() for p in ours.parameters()
    )
