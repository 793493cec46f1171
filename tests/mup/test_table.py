"""Table 1 of CompleteP, row by row, and the raw names of nanoGPT-mup and Photon."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic_photon.errors import ConfigError
from mosaic_photon.mup.table import (
    ParameterScale,
    Parametrization,
    Role,
    from_table,
    init_std_factor,
    input_multiplier,
    output_multiplier,
    parameter_scale,
    read_raw_names,
    residual_multiplier,
    softmax_scale,
)


def table(**values):
    defaults = {"base_width": 256, "base_depth": 4, "depth_alpha": 1.0, "attention_scale": False}
    return SimpleNamespace(**(defaults | {"input_multiplier": 1.0, "output_multiplier": 1.0} | values))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_every_row_of_the_table(alpha):
    n, depth = 8.0, 4.0
    p = from_table(table(depth_alpha=alpha), width=2048, depth=16)

    assert init_std_factor(Role.HIDDEN_WEIGHT, p) ** 2 == pytest.approx(1 / n)
    for role in (Role.EMBEDDING, Role.UNEMBEDDING):
        assert init_std_factor(role, p) == 1
        assert parameter_scale(role, p) == ParameterScale(lr=1, weight_decay=1, eps=1)
    eps = depth**-alpha / n
    block_lr = depth ** (alpha - 1)
    assert parameter_scale(Role.HIDDEN_WEIGHT, p) == ParameterScale(lr=block_lr / n, weight_decay=n, eps=eps)
    assert parameter_scale(Role.HIDDEN_BIAS, p) == ParameterScale(lr=block_lr, weight_decay=0, eps=eps)
    assert parameter_scale(Role.HIDDEN_NORM, p) == ParameterScale(lr=block_lr, weight_decay=0, eps=eps)
    assert parameter_scale(Role.OUTER_NORM, p) == ParameterScale(lr=1, weight_decay=0, eps=1)
    assert residual_multiplier(p) == pytest.approx(depth**-alpha)
    assert output_multiplier(p) == 1 / n


def test_width_only_is_the_tables_mup_column():
    p = from_table(table(depth_alpha=0.0), width=2048, depth=16)
    assert residual_multiplier(p) == 1
    assert parameter_scale(Role.HIDDEN_WEIGHT, p) == ParameterScale(lr=1 / 8, weight_decay=8, eps=1 / 8)
    assert parameter_scale(Role.HIDDEN_NORM, p) == ParameterScale(lr=1, weight_decay=0, eps=1 / 8)


@given(st.sampled_from(Role), st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0, 1))
def test_the_standard_parametrization_multiplies_by_one(role, width, depth, alpha):
    p = Parametrization(enabled=False, width=width, depth=depth, depth_alpha=alpha, input_multiplier=3.0)
    assert parameter_scale(role, p) == ParameterScale()
    assert init_std_factor(role, p) == residual_multiplier(p) == input_multiplier(p) == output_multiplier(p) == 1


@given(st.sampled_from(Role), st.floats(0, 1))
def test_the_base_model_is_the_one_that_was_tuned(role, alpha):
    p = from_table(table(depth_alpha=alpha), width=256, depth=4)
    scale = parameter_scale(role, p)
    assert (scale.lr, scale.eps) == (1, 1)
    assert scale.weight_decay in (0, 1)
    assert init_std_factor(role, p) == residual_multiplier(p) == output_multiplier(p) == 1


def test_switches():
    on = from_table(table(attention_scale=True, input_multiplier=2.0, output_multiplier=3.0), 512, 4)
    assert softmax_scale(64, on) == 1 / 64
    assert softmax_scale(64, Parametrization()) == 1 / 8
    assert (input_multiplier(on), output_multiplier(on)) == (2.0, 1.5)


def test_raw_names_of_photon_and_nanogpt_mean_the_same():
    photon = {
        "mup_enabled": True, "mup_width_multiplier": 4.0, "mup_input_alpha": 2.0, "mup_output_alpha": 3.0,
        "completep_depth_alpha_enabled": True, "completep_depth_multiplier": 8.0, "completep_depth_alpha_exp": 0.5,
    }  # fmt: skip
    nanogpt = {
        "mup_enabled": True, "mup_width_multiplier": 4.0, "mup_input_alpha": 2.0, "mup_output_alpha": 3.0,
        "depth_alpha_enabled": True, "depth_multiplier": 8.0, "depth_alpha_exp": 0.5,
    }  # fmt: skip
    config = {"d_model": 64, "mup_config": photon}
    p = read_raw_names(config)
    assert p == read_raw_names(dict(nanogpt, n_layers=2, mup_disable_attention_scaling=True))
    assert config == {"d_model": 64}
    assert (p.m_n, p.m_l, p.depth_alpha) == (4.0, 8.0, 0.5)
    assert read_raw_names({"mup_enabled": True, "depth_multiplier": 8.0}).m_l == 1  # depth off unless enabled
    assert read_raw_names({"d_model": 64}) is None


def test_a_missing_attention_switch_has_its_programs_default():
    assert read_raw_names({"mup_enabled": True}).attention_scale  # nanoGPT-mup: 1/d_head
    assert not read_raw_names({"mup_enabled": True, "mup_disable_attention_scaling": True}).attention_scale
    assert not read_raw_names({"mup_config": {"mup_enabled": True}}).attention_scale  # Photon: 1/sqrt(d_head)
    nested = {"mup_config": {"mup_enabled": True, "mup_disable_attention_scaling": False}}
    assert read_raw_names(nested).attention_scale


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"mup_wdith_multiplier": 3.0}, "Did you mean 'mup_width_multiplier'"),
        ({"mup_config": {"completep_depth_multipler": 3.0}}, "Did you mean 'completep_depth_multiplier'"),
        ({"mup_config": {"mup_enabled": True}, "mup_width_multiplier": 3.0}, "beside it mup_width_multiplier"),
    ],
)
def test_bad_raw_names(config, says):
    with pytest.raises(ConfigError, match=says):
        read_raw_names(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base_width": None}, "base_width is missing"),
        ({"base_width": 0}, "base_width is 0"),
        ({"base_depth": -1}, "base_depth is -1"),
        ({"depth_alpha": 1.5}, "between 0 .* and 1"),
        ({"depth_alpha": -0.1}, "between 0 .* and 1"),
        ({"output_multiplier": 0.0}, "greater than 0"),
    ],
)
def test_bad_tables(change, says):
    with pytest.raises(ConfigError, match=says):
        from_table(table(**change), width=256, depth=4)
