"""With muP, peri-norm and embedding norm off, the model is llm-foundry's MPTForCausalLM."""

import pytest
import torch
import torch.nn.functional as F
from llmfoundry.models.mpt import MPTConfig, MPTForCausalLM

from mosaic_photon.errors import ConfigError
from mosaic_photon.models import MPTMuPModelArgs, TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup.state_dict_adapter import to_foundry_name

SIZE = {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 128, "max_seq_len": 32}
UNFUSED_GQA = {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "rope": True, "fused_qkv": False}
CASES = {
    "learned positions, tied, biases": {},
    "alibi": {"attn_config": {"alibi": True}},
    "rope": {"attn_config": {"rope": True, "rope_theta": 500}},
    "GQA, rope, unfused": {"attn_config": UNFUSED_GQA},
    "GLU without biases": {"ffn_config": {"ffn_type": "mptglu", "ffn_act_fn": {"name": "silu"}}, "no_bias": True},
    "untied, rmsnorm, scaled and capped logits": {
        "tie_word_embeddings": False, "norm_type": "rmsnorm",
        "logit_scale": "inv_sqrt_d_model", "final_logit_softcapping": 3.0,
    },
    "MQA, qk norm, clipped": {"attn_config": {"attn_type": "multiquery_attention", "qk_ln": True, "clip_qkv": 1.0}},
    "sliding window, softmax scale": {"attn_config": {"sliding_window_size": 5, "softmax_scale": 0.3}},
    "capped scores": {"attn_config": {"attn_logit_softcapping": 2.0}},
    "embedding fraction": {"embedding_fraction": 0.1},
}  # fmt: skip


def reference(args: MPTMuPModelArgs) -> MPTForCausalLM:
    config = args.foundry_config()
    for ours in ("mup", "peri_norm", "embedding_norm"):
        del config[ours]
    config["attn_config"] = config["attn_config"] | {"attn_impl": "torch"}
    return MPTForCausalLM(MPTConfig(**config))


def pair(**changes) -> tuple[TitanComposerMPTMuP, MPTForCausalLM]:
    torch.manual_seed(0)
    args = MPTMuPModelArgs(**SIZE | changes)
    ours, theirs = TitanComposerMPTMuP(args), reference(args)
    theirs.load_state_dict({to_foundry_name(n): p for n, p in ours.state_dict().items()})
    return ours, theirs


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_logits_loss_and_every_gradient(changes):
    ours, theirs = pair(**changes)
    tokens = torch.randint(128, (2, 32))
    labels = torch.roll(tokens, -1, dims=1)
    labels[:, -1] = -100

    logits, expected = ours(tokens), theirs(tokens, labels=tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    expected.loss.backward()

    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=0)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[to_foundry_name(name)], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("attn", [{}, {"alibi": True}, {"rope": True}], ids=["learned", "alibi", "rope"])
def test_documents_are_masked_as_in_llm_foundry(attn):
    ours, theirs = pair(attn_config=attn | {"attn_uses_sequence_id": True})
    tokens, sequence_id = torch.randint(128, (2, 32)), torch.arange(32).div(11, rounding_mode="floor").expand(2, 32)
    theirs_mask = torch.ones(2, 32, dtype=torch.bool)
    expected = theirs(tokens, sequence_id=sequence_id, attention_mask=theirs_mask).logits
    torch.testing.assert_close(ours(tokens, sequence_id=sequence_id), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours(tokens, sequence_id=sequence_id), ours(tokens, sequence_id=sequence_id * 0))


def test_documents_that_the_batch_does_not_give_are_asked_for():
    ours, _ = pair(attn_config={"attn_uses_sequence_id": True})
    with pytest.raises(ConfigError, match="set eos_token_id or bos_token_id in the data config"):
        ours(torch.randint(128, (2, 32)))


def test_right_padding_does_not_reach_the_other_tokens():
    ours, theirs = pair(attn_config={"rope": True})
    tokens, mask = torch.randint(128, (2, 32)), torch.arange(32).expand(2, 32) < torch.tensor([[20], [32]])
    torch.testing.assert_close(
        ours(tokens, attention_mask=mask)[mask], theirs(tokens, attention_mask=mask).logits[mask], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("changes", [{"init_config": {"name": "baseline_", "init_std": 0.05}}, {}])
def test_init_has_llm_foundrys_distribution(changes):
    size = {"d_model": 256, "n_heads": 4, "vocab_size": 512} | changes
    args = MPTMuPModelArgs(**SIZE | size)
    ours, theirs = TitanComposerMPTMuP(args), dict(reference(args).named_parameters())
    for name, parameter in ours.named_parameters():
        expected = theirs[to_foundry_name(name)]
        torch.testing.assert_close(parameter.std(), expected.std(), rtol=0.05, atol=1e-6, msg=name)
        torch.testing.assert_close(parameter.mean(), expected.mean(), rtol=0, atol=0.01, msg=name)


def test_parameters_and_flops_are_counted_by_llm_foundrys_formula():
    from llmfoundry.models.mpt import ComposerMPTCausalLM

    for tied in (True, False):
        args = MPTMuPModelArgs(**SIZE | {"tie_word_embeddings": tied})
        config = {k: v for k, v in args.foundry_config().items() if k not in ("mup", "peri_norm", "embedding_norm")}
        config["attn_config"] = config["attn_config"] | {"attn_impl": "torch"}
        composer = ComposerMPTCausalLM(loss_fn="torch_crossentropy", **config)
        batch = {"input_ids": torch.zeros(3, 16, dtype=torch.long)}
        with torch.device("meta"):
            model = TitanComposerMPTMuP(args)
        nparams, flops = args.get_nparams_and_flops(model, 16)
        assert nparams == composer.n_total_params
        assert flops * 3 * 16 == composer.flops_per_batch(batch)
