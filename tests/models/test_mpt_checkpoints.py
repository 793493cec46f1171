"""Checkpoints in and out: other programs' files load, and what is exported gives the trained model's logits."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mosaic_photon.errors import ConfigError
from mosaic_photon.models import MPTMuPModelArgs, TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup import hf
from mosaic_photon.models.mpt_mup.foundry import ComposerMPTMuPCausalLM
from mosaic_photon.models.mpt_mup.state_dict_adapter import MPTStateDictAdapter

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


@pytest.mark.parametrize(
    "changes",
    [
        NATIVE,
        NATIVE | {"mup": MUP},
        NATIVE | {"mup": MUP, "tie_word_embeddings": False},
        {"mup": MUP, "attn_config": {"rope": True}, "peri_norm": True, "embedding_norm": True},
        {"tie_word_embeddings": False, "ffn_config": {"ffn_type": "mptglu"}},
    ],
    ids=["native", "native, muP, tied", "native, muP, untied", "carried, muP, norms", "carried, plain"],
)
def test_exported_logits_are_the_trained_models_and_it_generates(tmp_path, changes):
    ours = model(**changes)
    hf.export(ours.state_dict(), ours.model_args, tmp_path, tokenizer=TOKENIZER)

    native = "alibi" in ours.model_args.attn_config and "no_bias" in changes
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=not native).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.config.model_type == ("mpt" if native else "mpt_mup")
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS), atol=1e-4, rtol=1e-4)
        prompt = tokenizer("def main():", return_tensors="pt")
        text = theirs.generate(
            prompt.input_ids, attention_mask=prompt.attention_mask, max_new_tokens=5, do_sample=False
        )
        greedy = prompt.input_ids
        for _ in range(5):  # with the cache as without it
            greedy = torch.cat([greedy, ours(greedy)[:, -1:].argmax(-1)], dim=1)
    assert text.tolist() == greedy.tolist()


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

    joined = hf.match_qkv(split.state_dict(), fused.model_args)
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


def test_a_jobs_initial_checkpoint_is_checked_before_anything_is_built(tmp_path):
    from mosaic_photon.job_config import MosaicJobConfig

    ours = model()
    save_file(MPTStateDictAdapter(ours.model_args, None).to_hf(ours.state_dict()), tmp_path / "model.safetensors")
    job = MosaicJobConfig()
    job.training.seq_len = 32
    job.checkpoint.enable = job.checkpoint.initial_load_in_hf = True
    job.checkpoint.initial_load_path = str(tmp_path)
    MPTMuPModelArgs(**SIZE).update_from_config(job)
    for other, says in [
        ({"n_layers": 3}, "layers.2.* is missing"),
        ({"attn_config": {"fused_qkv": False}}, "convert it"),
    ]:
        with pytest.raises(ConfigError, match=says):
            MPTMuPModelArgs(**SIZE | other).update_from_config(job)


def test_no_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint here"):
        hf.read_checkpoint(tmp_path, MPTMuPModelArgs(**SIZE))
    (tmp_path / "x.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match="cannot be read"):
        hf.read_checkpoint(tmp_path, MPTMuPModelArgs(**SIZE))


def test_nothing_is_lost_on_the_way(tmp_path):
    ours = model(mup=MUP)
    hf.export(ours.state_dict(), ours.model_args, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mup"]["width"] == 4.0
    assert sum(t.numel() for t in load_file(tmp_path / "model.safetensors").values()) == sum(
        p.numel() for p in ours.parameters()
    )
