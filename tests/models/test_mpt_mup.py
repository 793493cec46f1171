"""The parametrization in the model: where each multiplier acts, and both homes of the model agree."""

import dataclasses

import pytest
import torch
from torch import nn

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.models import MPT_MUP_CONFIGS, MPTMuPModelArgs, TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup.foundry import MPTMuPConfig, MPTMuPForCausalLM
from mosaic_photon.models.mpt_mup.state_dict_adapter import to_foundry_name
from mosaic_photon.mup.table import ParameterScale
from mosaic_photon.titan.v02.llama3_mup import Llama3MuPModelArgs, Llama3MuPTransformer

SIZE = {"d_model": 64, "n_heads": 4, "n_layers": 4, "vocab_size": 128, "max_seq_len": 32}
MUP = {
    "enabled": True, "width": 4.0, "depth": 2.0, "depth_alpha": 1.0, "attention_scale": True,
    "input_multiplier": 3.0, "output_multiplier": 5.0,
}  # fmt: skip
TOKENS = torch.arange(64).view(2, 32)


def model(**changes) -> TitanComposerMPTMuP:
    torch.manual_seed(0)
    return TitanComposerMPTMuP(MPTMuPModelArgs(**SIZE | changes))


def job(**tables) -> MosaicJobConfig:
    config = MosaicJobConfig()
    config.training.seq_len = 32
    for table, values in tables.items():
        for name, value in values.items():
            setattr(getattr(config, table), name, value)
    return config


@pytest.mark.parametrize("norms", [{}, {"peri_norm": True, "embedding_norm": True}], ids=["pre-norm", "peri-norm"])
def test_both_homes_compute_the_same(norms):
    ours = model(mup=MUP, attn_config={"rope": True}, tie_word_embeddings=False, **norms)
    theirs = MPTMuPForCausalLM(MPTMuPConfig(**ours.model_args.foundry_config()))
    theirs.load_state_dict({to_foundry_name(n): p for n, p in ours.state_dict().items()})
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("peri_norm", [False, True])
def test_branches_are_multiplied_after_their_norm(peri_norm):
    """x + m_L^-alpha * Norm(F(Norm(x))), for attention and feed-forward: computed by hand from the submodules."""
    m = model(mup=MUP, peri_norm=peri_norm, no_bias=True)
    block, x = m.layers["0"], torch.randn(2, 8, 64)
    attended, _, _ = block.attn(block.norm_1(x))
    attended = block.resid_attn_dropout.norm(attended) if peri_norm else attended
    h = x + 0.5 * attended
    fed = block.ffn(block.norm_2(h))
    fed = block.resid_ffn_dropout.norm(fed) if peri_norm else fed
    torch.testing.assert_close(block(x)[0], h + 0.5 * fed)


def test_embedding_logits_and_scores():
    m = model(mup=MUP, embedding_norm=True)
    embedded = m.tok_embeddings(TOKENS, torch.arange(32)[None])
    norm = m.tok_embeddings.output.norm
    plain = m.tok_embeddings.wte(TOKENS) + m.tok_embeddings.wpe(torch.arange(32))
    torch.testing.assert_close(embedded, 3.0 * norm(plain))
    x = torch.randn(2, 8, 64)
    torch.testing.assert_close(m.output(x), x @ m.tok_embeddings.wte.weight.T * 5.0 / 4.0)
    assert m.layers["0"].attn.softmax_scale == 1 / 16
    assert model(mup=MUP | {"attention_scale": False}).layers["0"].attn.softmax_scale == 1 / 4


def test_init_variance_is_sigma2_over_m_n_in_the_blocks_and_sigma2_outside():
    m = model(d_model=256, vocab_size=512, mup=MUP, init_config={"init_std": 0.04}, tie_word_embeddings=False)
    for name, parameter in m.named_parameters():
        if parameter.ndim == 2:
            sigma = 0.04 / 2 if name.startswith("layers") else 0.04
            assert parameter.std().item() == pytest.approx(sigma, rel=0.05), name


def test_every_parameter_gets_the_scale_of_its_row():
    m = model(mup=MUP, peri_norm=True, embedding_norm=True, tie_word_embeddings=False, attn_config={"qk_ln": True})
    scales = m.parameter_scales()
    assert set(scales) == {name for name, _ in m.named_parameters()}
    weight, vector = ParameterScale(1 / 4, 4.0, 1 / 8), ParameterScale(1.0, 0.0, 1 / 8)
    outer, outer_norm = ParameterScale(), ParameterScale(1.0, 0.0, 1.0)
    expected = {
        "layers.1.attn.Wqkv.weight": weight, "layers.1.attn.out_proj.weight": weight,
        "layers.1.ffn.down_proj.weight": weight, "layers.1.ffn.down_proj.bias": vector,
        "layers.1.norm_1.weight": vector, "layers.1.attn.q_ln.weight": vector,
        "layers.1.resid_attn_dropout.norm.bias": vector, "norm.weight": outer_norm,
        "tok_embeddings.output.norm.weight": outer_norm, "tok_embeddings.wte.weight": outer,
        "tok_embeddings.wpe.weight": outer, "output.lm_head.weight": outer,
    }  # fmt: skip
    for name, scale in expected.items():
        assert scales[name] == scale, name
    assert set(model().parameter_scales().values()) == {ParameterScale()}


def test_the_job_table_gives_the_multipliers():
    args = MPTMuPModelArgs(**SIZE)
    args.update_from_config(job(mup={"enabled": True, "base_width": 16, "base_depth": 1, "depth_alpha": 0.5}))
    assert (args.parametrization.m_n, args.parametrization.m_l) == (4.0, 4.0)


def test_raw_multiplier_names_are_read_from_model_configs():
    raw = {"mup_enabled": True, "mup_width_multiplier": 4.0, "completep_depth_alpha_enabled": True,
           "completep_depth_multiplier": 2.0}  # fmt: skip
    ours = MPTMuPModelArgs(**SIZE, mup_raw={"mup_config": raw}).parametrization
    theirs = MPTMuPConfig(**SIZE, mup_config=raw, use_peri_norm=True)
    assert ours == theirs.parametrization
    assert theirs.peri_norm
    flat = {"mup_enabled": True, "mup_width_multiplier": 4.0}
    assert MPTMuPConfig(**SIZE, **flat).parametrization == MPTMuPModelArgs(**SIZE, mup_raw=flat).parametrization
    assert MPTMuPConfig(**SIZE, **flat).parametrization.m_n == 4.0
    with pytest.raises(ConfigError, match="mup and raw multiplier names"):
        MPTMuPConfig(**SIZE, **flat, mup=MUP)
    with pytest.raises(ConfigError, match="Did you mean 'mup_width_multiplier'"):
        MPTMuPConfig(**SIZE, mup_wdith_multiplier=3.0)


def test_llama_is_torchtitans_at_the_base_size():
    from torchtitan.models.llama3 import Transformer, TransformerModelArgs

    plain = TransformerModelArgs(dim=64, n_layers=2, n_heads=4, vocab_size=128, multiple_of=16)
    args = Llama3MuPModelArgs.of(plain)
    args.update_from_config(job(mup={"enabled": True, "base_width": 64, "base_depth": 2}))
    theirs, ours = Transformer(plain), Llama3MuPTransformer(args)
    with torch.no_grad():
        theirs.init_weights()
    ours.load_state_dict(theirs.state_dict())
    ours.freqs_cis = theirs.freqs_cis
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS))


def test_llama_scales_with_the_same_functions():
    from torchtitan.models.llama3 import TransformerModelArgs

    args = Llama3MuPModelArgs.of(TransformerModelArgs(dim=256, n_layers=2, n_heads=4, vocab_size=512))
    args.update_from_config(
        job(mup={"enabled": True, "base_width": 64, "base_depth": 1, "attention_scale": True, "input_multiplier": 2.0})
    )
    m = Llama3MuPTransformer(args)
    m.init_weights()
    scales = m.parameter_scales()
    assert scales["layers.0.attention.wq.weight"] == ParameterScale(1 / 4, 4.0, 1 / 8)
    assert scales["layers.1.ffn_norm.weight"] == ParameterScale(1.0, 0.0, 1 / 8)
    assert scales["output.weight"] == scales["tok_embeddings.weight"] == ParameterScale()
    stds = {name: p.std().item() for name, p in m.named_parameters() if p.ndim == 2}
    assert stds["layers.1.feed_forward.w2.weight"] == pytest.approx(0.02 / 2, rel=0.05)
    assert stds["output.weight"] == pytest.approx(64**-0.5, rel=0.05)
    block, x = m.layers["0"], torch.randn(1, 8, 256)
    attended = block.attention(block.attention_norm(x), m.freqs_cis, None)
    h = x + 0.5 * attended
    torch.testing.assert_close(block(x, m.freqs_cis, None), h + 0.5 * block.feed_forward(block.ffn_norm(h)))
    final = m.norm(torch.ones(1, 1, 256))
    assert m.logit_multiplier == 1 / 4 and final.shape == (1, 1, 256)
    torch.testing.assert_close(m.tok_embeddings(TOKENS), 2 * nn.functional.embedding(TOKENS, m.tok_embeddings.weight))


@pytest.mark.parametrize("name", ["initial_load_in_hf", "last_save_in_hf"])
def test_llama_with_mup_has_no_hugging_face_form(name):
    args = Llama3MuPModelArgs()
    args.update_from_config(job(mup={"enabled": True, "base_width": 64}, checkpoint={name: True}))  # not in use
    with pytest.raises(ConfigError, match=f"{name} = true: .* no place for the multipliers"):
        args.update_from_config(job(mup={"enabled": True, "base_width": 64}, checkpoint={"enable": True, name: True}))
    args.update_from_config(job(checkpoint={"enable": True, name: True}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"d_model": 65}, "not divisible by n_heads 4; n_heads = 1"),
        ({"attn_config": {"attn_imp": "sdpa"}}, "Did you mean 'attn_impl'"),
        ({"attn_config": {"attn_impl": "flahs"}}, "flahs"),
        ({"ffn_config": {"ffn_type": "mptgl"}}, "Did you mean 'mptglu'"),
        ({"attn_config": {"attn_type": "grouped_query_attention"}}, "needs attn_config.kv_n_heads"),
        ({"attn_config": {"rope": True, "alibi": True}}, "both on"),
        ({"mup": {"widht": 2}}, "Did you mean 'width'"),
        ({"mup": {"width": "4"}}, "width multiplier is '4'"),
        ({"mup": {"enabled": "yes"}}, "enabled is 'yes'; it must be true or false"),
        ({"n_layers": 0}, "positive integer"),
        ({"expansion_ratio": -4}, "ffn_hidden_size is -256"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping is -1"),
        ({"attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": -2}}, "kv_n_heads is -2"),
        ({"attn_config": {"kv_n_heads": 2}}, "which only attn_type = 'grouped_query_attention' has"),
        ({"attn_config": {"alibi": "yes"}}, "alibi is 'yes'; it must be true or false"),
        ({"attn_config": {"clip_qkv": "6"}}, "clip_qkv is '6'; it must be a number"),
    ],
)
def test_bad_model_args(change, says):
    with pytest.raises(ConfigError, match=says):
        MPTMuPModelArgs(**SIZE | change)


@pytest.mark.parametrize(
    ("changes", "tables", "says"),
    [
        ({}, {"parallelism": {"tensor_parallel_degree": 2}}, "fused_qkv = false"),
        ({"attn_config": {"fused_qkv": False}}, {"parallelism": {"tensor_parallel_degree": 3}}, "does not divide"),
        ({}, {"parallelism": {"pipeline_parallel_degree": 2}}, "tie_word_embeddings = false"),
        ({"attn_config": {"alibi": True}}, {"parallelism": {"context_parallel_degree": 2}}, "alibi is True"),
        (
            {"attn_config": {"attn_logit_softcapping": 3.0}},
            {"parallelism": {"context_parallel_degree": 2}},
            "attn_logit_softcapping is 3.0",
        ),
        ({"attn_config": {"attn_pdrop": 0.1}}, {"parallelism": {"context_parallel_degree": 2}}, "attn_pdrop is 0.1"),
        ({}, {"training": {"seq_len": 64}}, "max_seq_len = 64"),
        ({}, {"mup": {"enabled": True}}, "base_width is missing"),
        ({}, {"mup": {"enabled": True, "base_width": 0}}, "base_width is 0"),
        ({}, {"mup": {"enabled": True, "base_width": 64, "depth_alpha": 2.0}}, "depth_alpha is 2"),
    ],
)
def test_refused_jobs_say_why(changes, tables, says):
    args = MPTMuPModelArgs(**SIZE | changes)
    with pytest.raises(ConfigError, match=says):
        args.update_from_config(job(**tables))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"norm_type": "rmsnrom"}, "norm_type is 'rmsnrom'. Did you mean 'rmsnorm'"),
        ({"init_config": {"name": "baselin_"}}, "Did you mean 'baseline_'"),
        ({"init_config": {"name": "baseline_"}}, "init_std"),
        ({"resid_pdrop": 2.0}, "between 0 and 1"),
        ({"embedding_fraction": 0.0}, "embedding_fraction must be between 0"),
        ({"logit_scale": "foo"}, "logit_scale='foo'"),
        ({"attn_config": {"attn_logit_softcapping": -1.0}}, "softcapping should be positive"),
        ({"attn_config": {"qk_ln": True, "qk_gn": True}}, "Only one of qk_ln and qk_gn"),
        ({"attn_config": {"rope": True, "rope_hf_config": {"type": "linaer", "factor": 2.0}}}, "no_scaling"),
        ({"ffn_config": {"ffn_act_fn": {"name": "gleu"}}}, "gleu"),
        ({"mup": MUP, "init_config": {"name": "kaiming_normal_"}}, "must be 'baseline_'"),
        ({"mup": MUP, "init_config": {"init_div_is_residual": True}}, "init_div_is_residual is True; leave it out"),
        ({"mup": MUP, "attn_config": {"softmax_scale": 0.1}}, "both set the scale"),
    ],
)
def test_what_llm_foundry_refuses_is_one_message_before_anything_is_built(change, says):
    args = MPTMuPModelArgs(**SIZE | change)
    state = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=says):
        args.update_from_config(job())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_saved_config_with_mup_loads_again():
    config = MPTMuPConfig(**SIZE, mup=MUP)
    assert MPTMuPConfig.from_dict(config.to_dict()).init_config == config.init_config


PUBLISHED = {"125m": 125e6, "350m": 355e6, "760m": 760e6, "1b": 1.3e9, "3b": 2.7e9, "7b": 6.7e9, "13b": 13e9,
             "30b": 30e9, "70b": 65e9}  # fmt: skip


@pytest.mark.parametrize("flavor", PUBLISHED)
def test_flavors_have_their_published_size(flavor):
    args = MPT_MUP_CONFIGS[flavor]
    d, layers = args.d_model, args.n_layers
    counted = 12 * layers * d**2 + args.vocab_size * d  # without biases, norms and positions
    assert counted == pytest.approx(PUBLISHED[flavor], rel=0.03)
    with torch.device("meta"):
        nparams, _ = args.get_nparams_and_flops(TitanComposerMPTMuP(dataclasses.replace(args, n_layers=1)), 2048)
    per_block = 12 * d**2 + 13 * d
    assert nparams + (layers - 1) * per_block == pytest.approx(counted, rel=0.03)
