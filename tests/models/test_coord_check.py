"""The coordinate check's arithmetic, and that it tells muP from the standard parametrization."""

import numpy as np
import pytest
import torch

from mosaic_photon.errors import ConfigError
from mosaic_photon.models import MPTMuPModelArgs, TitanComposerMPTMuP, coord_check, coord_report
from mosaic_photon.models.coord_check import Activations
from mosaic_photon.models.proxy import KINDS, Hyper, adamw, build, resized, stdlib_tokens

SIZE = {"n_heads": 2, "n_layers": 2, "vocab_size": 2048, "max_seq_len": 128}


def activations(axis="width", steps=3, **slope_of_kind) -> Activations:
    """Power laws with the given slopes at every step."""
    sizes = [64, 128, 256]
    slopes = np.array([slope_of_kind.get(kind.replace("-", "_"), 0.0) for kind in KINDS])
    values = np.array(sizes, dtype=float)[None, None, :] ** slopes[:, None, None]
    return Activations(axis, sizes, np.repeat(values, steps, axis=1))


def test_slopes_of_power_laws():
    np.testing.assert_allclose(activations(block=0.5, logits=-0.5).slopes()[[3, 4]], [[0.5] * 3, [-0.5] * 3])


@pytest.mark.parametrize(
    ("slopes", "axis", "out"),
    [
        ({}, "width", []),
        ({"logits": -0.5}, "width", []),  # logits may shrink
        ({"logits": 0.2}, "width", ["logits"]),
        ({"block": -0.2}, "width", ["block"]),
        ({"block": -0.2}, "depth", []),
        ({"attention": 0.2, "feed_forward": float("nan")}, "depth", ["attention", "feed-forward"]),
    ],
)
def test_verdict(slopes, axis, out):
    assert [finding.kind for finding in coord_check.judge(activations(axis, **slopes))] == out


def test_growth_at_the_initialised_model_is_no_finding():
    a = activations()
    a.values[3, 0] = [1, 10, 100]
    assert coord_check.judge(a) == []


def test_mup_passes_where_the_standard_parametrization_fails():
    torch.manual_seed(0)
    tokens = stdlib_tokens("tests/assets/tokenizer", 50_000)
    base = MPTMuPModelArgs(d_model=64, **SIZE)
    verdicts = {}
    for name in ("mup", "standard"):

        def make(width, mup=name == "mup"):
            args = resized(base, width=width)
            if mup:
                args.mup = {"enabled": True, "width": width / 64}
            args._init_seed = 300  # from seed to seed the slopes of models as narrow as these scatter by 0.1
            return lambda seed: (TitanComposerMPTMuP, args)

        runs = {width: make(width) for width in (64, 128, 256)}
        traces = list(coord_check.check(runs, tokens, lr=2e-3, seeds=1, steps=4))
        verdicts[name] = coord_check.judge(coord_check.collect("width", traces))
    assert verdicts["mup"] == []
    assert {finding.kind for finding in verdicts["standard"]} >= {"attention", "feed-forward", "block"}


def test_another_width_keeps_the_models_proportions():
    attn = {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "attn_uses_sequence_id": True}
    args = MPTMuPModelArgs(d_model=128, ffn_config={"ffn_hidden_size": 320}, attn_config=attn, **SIZE | {"n_heads": 4})
    wide = resized(args, width=256)
    assert (wide.n_heads, wide.kv_n_heads, wide.ffn_hidden_size) == (8, 4, 640)
    assert not wide.attn_config["attn_uses_sequence_id"]  # random windows of text have no documents
    with pytest.raises(ConfigError, match="5 query heads do not divide into the model's groups of 2"):
        resized(args, width=160)


def test_optimizer_groups_carry_the_scales():
    args = MPTMuPModelArgs(d_model=64, mup={"enabled": True, "width": 4.0, "depth": 2.0}, **SIZE)
    optimizer = adamw(build(TitanComposerMPTMuP, args, 0, "cpu"), Hyper(lr=1e-2, weight_decay=0.1, eps=1e-8))
    found = sorted((g["lr"], g["weight_decay"], g["eps"]) for g in optimizer.param_groups)
    expected = [(0.0025, 0.4, 1.25e-9), (0.01, 0.0, 1.25e-9), (0.01, 0.0, 1e-8), (0.01, 0.1, 1e-8)]
    np.testing.assert_allclose(found, expected)


def test_report_files_stand_alone(tmp_path):
    a = activations(block=0.5)
    paths = coord_report.write(str(tmp_path), "a <title>", a, coord_check.judge(a))
    assert {path.suffix for path in paths} == {".json", ".png", ".html"}
    page = (tmp_path / "coord_check_width.html").read_text()
    assert "FAIL: block at step 1: slope +0.50" in page and "&lt;title&gt;" in page
    assert "http" not in page and "data:image/png;base64," in page
